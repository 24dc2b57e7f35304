/* A simulated NPU with recorded outputs for tests/board/librknnrt.c; it replaces the board's device.c and link.c.
 * simulated_library.py compiles it for this machine and calls simulate().
 *
 * A job starts when its cores are free and ends one inference later; its caller sleeps until then. Its outputs are
 * those recorded on the frame that is most like the input. They are not copied, because a real NPU writes its outputs
 * without the CPU. */
#define _GNU_SOURCE
#include "device.h"
#include "link.h"
#include "rknn_abi.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
struct report report;
int n_cores = 1;

static struct {
    struct description model;
    int64_t inference[MAX_CORES], free_at[MAX_CORES]; /* nanoseconds */
    double speedup;                                   /* of several cores on one frame */
    uint32_t frames, points;
    uint32_t *places;      /* in an input, of the points that are compared */
    uint8_t *fingerprints; /* those points of each recorded frame */
    int8_t **outputs;      /* of each recorded frame */
} npu;

static int links;                   /* opened contexts; librknnrt.c allows MAX_CONTEXTS */
static bool computed[MAX_CONTEXTS]; /* the contexts that have computed */

/* Set up the NPU. The caller owns the memory of the pointers and keeps it. */
RKNN_API void simulate(const struct description *model, int cores, const double *seconds, double speedup, uint32_t frames,
                       uint32_t points, uint32_t *places, uint8_t *fingerprints, int8_t **outputs) {
    pthread_mutex_lock(&lock);
    npu.model = *model;
    n_cores = cores;
    for (int i = 0; i < cores; i++) {
        npu.inference[i] = (int64_t)(seconds[i] * 1e9);
        npu.free_at[i] = 0;
    }
    npu.speedup = speedup;
    npu.frames = frames;
    npu.points = points;
    npu.places = places;
    npu.fingerprints = fingerprints;
    npu.outputs = outputs;
    pthread_mutex_unlock(&lock);
}

/* ---- link.h ---- */

uint32_t elements(const struct tensor *t) {
    uint32_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i];
    return n;
}

int link_open(const void *model, uint32_t size, struct description *found, char sentence[512]) {
    (void)model, (void)size, (void)sentence;
    *found = npu.model;
    return links++;
}

/* A context's first outputs, zeros, are its own; those after them are the caller's. */
static void free_first(int link, const struct description *model, int8_t *output[]) {
    for (uint32_t i = 0; i < model->n_output && !computed[link]; i++)
        free(output[i]);
    computed[link] = true;
}

void link_close(int link, const struct description *model, int8_t *output[]) {
    free_first(link, model, output);
}

bool link_compute(int link, const void *input, uint32_t size, const struct description *model, int8_t *output[]) {
    const uint8_t *pixels = (const uint8_t *)input + sizeof(uint32_t);
    uint32_t best = 0, least = UINT32_MAX;
    (void)size;
    for (uint32_t frame = 0; frame < npu.frames; frame++) {
        const uint8_t *recorded = npu.fingerprints + (size_t)frame * npu.points;
        uint32_t apart = 0;
        for (uint32_t i = 0; i < npu.points; i++)
            apart += (uint32_t)abs(recorded[i] - pixels[npu.places[i]]);
        if (apart < least) {
            least = apart;
            best = frame;
        }
    }
    free_first(link, model, output);
    for (uint32_t i = 0; i < model->n_output; i++)
        output[i] = npu.outputs[best * model->n_output + i];
    return true;
}

/* ---- device.h ---- */

void complain(const char *call, const char *what) {
    fprintf(stderr, "E RKNN (simulated): %s: %s\n", call, what);
}

bool asked(const char *name, long number) {
    (void)name, (void)number;
    return false;
}

bool open_device(void) {
    return true;
}

void write_report(void) {
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Enters a job into its cores' queues, and returns when it ends. */
static int64_t enter_job(uint32_t mask) {
    int64_t start = now(), takes = 0;
    pthread_mutex_lock(&lock);
    if (!mask) { /* the core that is free first */
        int first = 0;
        for (int i = 1; i < n_cores; i++)
            if (npu.free_at[i] < npu.free_at[first])
                first = i;
        mask = 1u << first;
    }
    for (int i = 0; i < n_cores; i++)
        if (mask >> i & 1) {
            if (npu.free_at[i] > start)
                start = npu.free_at[i];
            if (npu.inference[i] > takes)
                takes = npu.inference[i];
        }
    if (mask & (mask - 1))
        takes = (int64_t)((double)takes / npu.speedup);
    for (int i = 0; i < n_cores; i++)
        if (mask >> i & 1)
            npu.free_at[i] = start + takes;
    pthread_mutex_unlock(&lock);
    return start + takes;
}

bool run_on_cores(struct record *context, struct piece *piece) {
    int64_t began = now(), end = enter_job(piece->mask);
    (void)context;
    bool ok = piece->compute(piece->data);
    struct timespec t = {end / 1000000000, end % 1000000000};
    if (end > now())
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
            ;
    piece->us = (now() - began) / 1000;
    return ok;
}
