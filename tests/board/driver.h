/* The emulated RKNPU kernel driver: shared by driver.c (memory, ioctls) and submit.c (runs). */
#pragma once

#include "device.h"

#include <stddef.h>

/* A piece of NPU memory. The driver and the process map the same memfd. */
struct memory {
    uint64_t size, address; /* the address in register commands */
    uint8_t *at;
    int fd; /* -1: the handle is not used */
    long serial; /* increases with every new piece */
};

/* The layout of the driver's public header for 64-bit Arm, library 1.5.2. */
struct npu_submit {
    uint32_t flags, timeout_ms, task_start, task_number, task_counter;
    int32_t priority;
    uint64_t tasks; /* cookie of the memory with the context's tasks */
    uint64_t register_config, task_base, user_data;
    uint32_t core_mask;
    int32_t fence_fd;
    struct {
        uint32_t start, number;
    } of_core[5];
};

_Static_assert(sizeof(struct npu_submit) == 104, "layout of npu_submit");

/* The memory with this address or cookie, or NULL. The caller holds the lock. */
struct memory *memory_at(uint64_t address);
struct memory *memory_of_cookie(uint64_t cookie);

/* A context exists as long as the memory of its tasks. The caller holds the lock. */
void context_opened(struct memory *tasks);
void memory_is_freed(struct memory *memory);

/* Returns 0, or -1 with errno. */
int submit(struct npu_submit *request);
