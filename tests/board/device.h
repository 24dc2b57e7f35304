/* The emulated NPU below the library: cores with one run at a time, requested faults, and the report. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum { MAX_CORES = 3, MAX_CONTEXTS = 4096 };

/* The report on one context. */
struct record {
    uint32_t mask;
    long runs;
    long submits[8]; /* to the kernel driver, by core mask; none with the emulated library */
    bool open;
};

struct report {
    long inits, opened, destroyed, runs, failed;
    long shared; /* times that two threads used one context at once */
    long stale; /* calls with a handle that is not open */
    long destroyed_in_use; /* contexts destroyed while another thread used them */
    long memory, memory_most; /* allocated bytes of NPU memory, now and at most */
    struct record contexts[MAX_CONTEXTS];
    int n_contexts;
};

extern pthread_mutex_t lock; /* of the report and the cores */
extern struct report report;
extern int n_cores; /* of the SoC in /proc/device-tree/compatible */

void complain(const char *call, const char *what);

/* True if the environment variable's list of numbers and ranges ("3", "3,7-9", "20-") contains this number. */
bool asked(const char *name, long number);

/* Opens the driver's device, once per process. False if there is none. */
bool open_device(void);

/* A run, or a part of one. */
struct piece {
    uint32_t mask; /* 0: any core */
    bool begins_a_run; /* this part is counted as a run, may fail, and takes the run's time */
    long patience_ms; /* the driver's timeout for a core that hangs */
    bool (*compute)(void *data); /* computes the answer */
    void *data;
    int64_t us; /* duration, after its end */
};

/* Waits for the cores and runs a piece on them. True if there is an answer. */
bool run_on_cores(struct record *context, struct piece *piece);

/* Writes the report to the file BOARD_REPORT. */
void write_report(void);
