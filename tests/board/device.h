/* The emulated NPU below the library: cores that take one run at a time, faults that were asked for, and the books. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum { MAX_CORES = 3, MAX_CONTEXTS = 4096 };

/* What is booked of one context. */
struct booked {
    uint32_t mask;
    long runs;
    long submits[8]; /* to the kernel driver, by their core mask; the emulated library has none */
    bool open;
};

struct books {
    long inits, opened, destroyed, runs, failed;
    long shared; /* a second thread met another in one context */
    long stale; /* a call came with the handle of no open context */
    long destroyed_in_use; /* a context was destroyed with another thread inside */
    long memory, memory_most; /* bytes of NPU memory that the driver has given out */
    struct booked contexts[MAX_CONTEXTS];
    int n_contexts;
};

extern pthread_mutex_t lock; /* over the books and the cores */
extern struct books books;
extern int n_cores; /* of the SoC in /proc/device-tree/compatible */

void complain(const char *call, const char *what);

/* Whether a variable's list of numbers and ranges ("3", "3,7-9", "20-") holds this number. */
bool asked(const char *name, long number);

/* Opens the driver's device, once for the process; false where there is none. */
bool open_device(void);

/* A piece of a run, or all of it. */
struct piece {
    uint32_t mask; /* 0: any core */
    bool begins_a_run; /* then the run is counted, may be asked to fail, and takes its time */
    long patience_ms; /* how long the driver waits for a core that hangs */
    bool (*compute)(void *data); /* gives the answer */
    void *data;
    int64_t us; /* that it took, when it is done */
};

/* Does a piece on its cores, once they are free. Returns whether there is an answer. */
bool run_on_cores(struct booked *context, struct piece *piece);

/* Writes the books to the file that BOARD_REPORT names. */
void write_report(void);
