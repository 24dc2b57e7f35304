/* The emulated NPU below the library: cores that take one run at a time, faults that were asked for, and the books. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum { MAX_CORES = 3, MAX_CONTEXTS = 256 };

/* What is booked of one context. */
struct booked {
    uint32_t mask;
    long runs;
    bool open;
};

struct books {
    long inits, opened, destroyed, runs, failed;
    long shared; /* a second thread met another in one context */
    long stale; /* a call came with the handle of no open context */
    long destroyed_in_use; /* a context was destroyed with another thread inside */
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

/* One run on the cores of a mask (0: any), once they are free: compute(data) gives the answer. Returns whether it came. */
bool run_on_cores(struct booked *context, bool (*compute)(void *data), void *data, int64_t *us);

/* Writes the books to the file that BOARD_REPORT names. */
void write_report(void);
