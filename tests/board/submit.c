/* SUBMIT in the emulated driver: it occupies the requested cores and writes the outputs that the NPU would write.
 *
 * The tasks' register commands contain the addresses that the NPU reads and writes. Only those of the model's input and
 * outputs are used. npu.py computes the outputs at a run's first submit; each output is written by the submit whose
 * tasks write it.
 */
#define _GNU_SOURCE
#include "driver.h"
#include "link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BEGINS = 1 << MAX_TENSORS, SOURCE = 0x1070, WEIGHTS = 0x1110, TARGET = 0x4020, POOLED_TARGET = 0x6070, CHANNELS = 16 };

/* The layout of the driver's public header. */
struct npu_task {
    uint32_t flags, operation, enable, interrupts, clear, status;
    uint32_t n_commands, offset;
    uint64_t commands; /* address; each is target (16 bits), value (32), register (16) */
};

_Static_assert(sizeof(struct npu_task) == 40, "layout of npu_task");

/* A context, as the driver sees it. */
struct plan {
    struct memory *tasks;
    struct record *record;
    int inside; /* running submits */
    int link; /* -1: not yet open */
    struct description model;
    struct memory *input, *commands, *weights, *outputs[MAX_TENSORS];
    uint64_t input_address;
    uint32_t *touches; /* by task: bit n if it writes output n, BEGINS if it reads the start of the input */
    uint8_t *question;
    int8_t *answers[MAX_TENSORS];
};

struct work {
    struct plan *plan;
    bool first;
    uint32_t outputs; /* written by its tasks */
};

static struct plan plans[MAX_CONTEXTS];

static void forget(struct plan *plan) {
    if (plan->link >= 0)
        close(plan->link);
    plan->link = -1;
    free(plan->touches);
    free(plan->question);
    plan->touches = NULL, plan->question = NULL;
    for (int n = 0; n < MAX_TENSORS; n++) {
        free(plan->answers[n]);
        plan->answers[n] = NULL;
    }
}

static struct plan *plan_of(const struct memory *tasks) {
    for (int i = 0; i < report.n_contexts; i++)
        if (tasks && plans[i].tasks == tasks)
            return &plans[i];
    return NULL;
}

void context_opened(struct memory *tasks) {
    if (report.n_contexts == MAX_CONTEXTS)
        return;
    struct plan *plan = &plans[report.n_contexts];
    plan->tasks = tasks;
    plan->link = -1;
    plan->record = &report.contexts[report.n_contexts++];
    plan->record->open = true;
    report.opened++;
}

void memory_is_freed(struct memory *memory) {
    for (int i = 0; i < report.n_contexts; i++) {
        struct plan *plan = &plans[i];
        if (!plan->tasks)
            continue;
        bool used = memory == plan->tasks || memory == plan->input || memory == plan->commands ||
                    memory == plan->weights;
        for (int n = 0; n < MAX_TENSORS; n++)
            used |= memory == plan->outputs[n];
        report.destroyed_in_use += used && plan->inside;
        if (used && !plan->inside) /* a running submit keeps its memory */
            forget(plan);
        if (memory == plan->tasks) {
            report.destroyed++;
            plan->record->open = false;
            plan->tasks = NULL;
        }
    }
}

/* ---- the tasks ---- */

static struct npu_task *task(const struct plan *plan, uint32_t number) {
    return &((struct npu_task *)plan->tasks->at)[number];
}

static uint32_t n_tasks(const struct plan *plan) {
    return (uint32_t)(plan->tasks->size / sizeof(struct npu_task));
}

/* The memory of a task's n-th command for one of these registers, or NULL. */
static struct memory *addressed(const struct npu_task *task, const uint16_t registers[2], uint32_t *n, uint64_t *address) {
    struct memory *commands = memory_at(task->commands);
    for (; commands && *n < task->n_commands; ++*n) {
        uint64_t at = task->commands - commands->address + *n * sizeof(uint64_t);
        if (at + sizeof(uint64_t) > commands->size)
            return NULL;
        uint64_t command;
        memcpy(&command, commands->at + at, sizeof command);
        *address = command >> 16 & 0xffffffff;
        if ((uint16_t)command == registers[0] || (uint16_t)command == registers[1]) {
            ++*n;
            return memory_at(*address);
        }
    }
    return NULL;
}

static const uint16_t sources[2] = {SOURCE, SOURCE}, weights[2] = {WEIGHTS, WEIGHTS}, targets[2] = {TARGET, POOLED_TARGET};

/* Memory that was allocated after the input and is written is an output; outputs are in the order of allocation. The
 * first piece of a run reads the start of the input, on any core. */
static void find_inputs_and_outputs(struct plan *plan) {
    struct memory *found[MAX_TENSORS + 1] = {NULL};
    int n_found = 0;
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < n_tasks(plan); i++) {
            uint64_t address;
            uint32_t n = 0;
            for (struct memory *m; (m = addressed(task(plan, i), targets, &n, &address));) {
                int place = 0;
                if (m->serial <= plan->input->serial)
                    continue;
                while (place < n_found && found[place]->serial < m->serial)
                    place++;
                if (pass)
                    plan->touches[i] |= 1u << place;
                else if (n_found < MAX_TENSORS && found[place] != m) {
                    memmove(&found[place + 1], &found[place], sizeof found[0] * (size_t)(n_found - place));
                    found[place] = m;
                    n_found++;
                }
            }
        }
    memcpy(plan->outputs, found, sizeof plan->outputs);
    for (uint32_t i = 0; i < n_tasks(plan); i++) {
        uint64_t address = 0;
        uint32_t n = 0;
        while (addressed(task(plan, i), sources, &n, &address))
            plan->touches[i] |= address == plan->input_address ? BEGINS : 0;
    }
}

static size_t padded_size(const struct tensor *t) {
    return t->n_dims == 4 ? (size_t)(t->dims[1] + CHANNELS - 1) / CHANNELS * CHANNELS * t->dims[2] * t->dims[3] : elements(t);
}

/* Reads the tasks of a context before its first run. `first` is the first task. */
static bool understand(struct plan *plan, uint32_t first) {
    uint64_t address = 0;
    uint32_t n = 0;
    struct memory *input = addressed(task(plan, first), sources, &n, &address);
    n = 0;
    plan->weights = addressed(task(plan, first), weights, &n, &(uint64_t){0});
    if (!input || !plan->weights) {
        complain("the NPU", "the first task reads no input, or has no weights");
        return false;
    }
    plan->input = input, plan->input_address = address;
    plan->commands = memory_at(task(plan, first)->commands);
    char sentence[512] = "";
    plan->link = link_open(plan->weights->at, (uint32_t)plan->weights->size, &plan->model, sentence);
    if (plan->link < 0) {
        complain("the NPU", sentence);
        return false;
    }
    plan->touches = calloc(n_tasks(plan), sizeof *plan->touches);
    find_inputs_and_outputs(plan);
    for (uint32_t i = 0; i < plan->model.n_output; i++) {
        const struct tensor *t = &plan->model.tensors[plan->model.n_input + i];
        if (!plan->outputs[i] || plan->outputs[i]->size < padded_size(t)) {
            complain("the NPU", "the tasks' outputs are not the model's");
            forget(plan);
            return false;
        }
        plan->answers[i] = malloc(elements(t));
    }
    plan->question = malloc(sizeof(uint32_t) + elements(&plan->model.tensors[0]));
    return true;
}

/* ---- results ---- */

/* The library leaves room at the end of rows whose length must be a multiple of some number. */
static void read_input(struct plan *plan) {
    const struct tensor *t = &plan->model.tensors[0];
    size_t row = (size_t)t->dims[2] * t->dims[3], rows = t->dims[1];
    size_t stride = plan->input->size % rows == 0 && plan->input->size / rows > row ? plan->input->size / rows : row;
    *(uint32_t *)plan->question = TYPE_UINT8;
    for (size_t i = 0; i < rows; i++)
        memcpy(plan->question + sizeof(uint32_t) + i * row, plan->input->at + i * stride, row);
}

/* 4-D outputs have channels in groups of sixteen, (C / 16, H, W, 16). */
static void write_output(const struct tensor *t, const int8_t *values, uint8_t *to) {
    if (t->n_dims != 4) {
        memcpy(to, values, elements(t));
        return;
    }
    size_t area = (size_t)t->dims[2] * t->dims[3];
    for (size_t channel = 0; channel < t->dims[1]; channel++)
        for (size_t i = 0; i < area; i++)
            to[(channel / CHANNELS * area + i) * CHANNELS + channel % CHANNELS] = (uint8_t)values[channel * area + i];
}

static bool compute(void *data) {
    struct work *work = data;
    struct plan *plan = work->plan;
    if (work->first) {
        read_input(plan);
        uint32_t size = (uint32_t)sizeof(uint32_t) + elements(&plan->model.tensors[0]);
        if (!link_compute(plan->link, plan->question, size, &plan->model, plan->answers))
            return false;
    }
    for (uint32_t i = 0; i < plan->model.n_output; i++)
        if (work->outputs >> i & 1)
            write_output(&plan->model.tensors[plan->model.n_input + i], plan->answers[i], plan->outputs[i]->at);
    return true;
}

int submit(struct npu_submit *request) {
    pthread_mutex_lock(&lock);
    struct plan *plan = plan_of(memory_of_cookie(request->tasks));
    if (!plan || (!plan->touches && !understand(plan, request->of_core[0].start))) {
        report.stale += !plan;
        pthread_mutex_unlock(&lock);
        errno = EINVAL;
        return -1;
    }
    struct work work = {plan, false, 0};
    for (int core = 0; core < 5; core++)
        for (uint32_t i = 0; i < request->of_core[core].number && request->of_core[core].start + i < n_tasks(plan); i++)
            work.outputs |= plan->touches[request->of_core[core].start + i];
    work.first = work.outputs & BEGINS;
    if (work.first)
        plan->record->mask = request->core_mask;
    plan->record->submits[request->core_mask & 7]++;
    report.shared += plan->inside > 0;
    plan->inside++;
    pthread_mutex_unlock(&lock);

    struct piece piece = {request->core_mask, work.first, request->timeout_ms, compute, &work, 0};
    bool ok = run_on_cores(plan->record, &piece);

    pthread_mutex_lock(&lock);
    plan->inside--;
    pthread_mutex_unlock(&lock);
    request->task_counter = ok ? request->task_number : 0;
    if (ok)
        return 0;
    errno = ETIMEDOUT;
    return -1;
}
