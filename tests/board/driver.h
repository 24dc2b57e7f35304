/* The RKNPU kernel driver, emulated: what driver.c (memory, ioctls) and submit.c (runs) share. */
#pragma once

#include "device.h"

#include <stddef.h>

/* A piece of NPU memory. The driver's and the process's mappings are of one memfd. */
struct memory {
    uint64_t size, address; /* the address that register commands have for it */
    uint8_t *at;
    int fd; /* -1: there is none of this handle */
    long serial; /* counts up with every piece that is made */
};

/* As the driver's public header lays it out for 64-bit Arm, library 1.5.2. */
struct npu_submit {
    uint32_t flags, timeout_ms, task_start, task_number, task_counter;
    int32_t priority;
    uint64_t tasks; /* cookie of the memory that holds the context's tasks */
    uint64_t register_config, task_base, user_data;
    uint32_t core_mask;
    int32_t fence_fd;
    struct {
        uint32_t start, number;
    } of_core[5];
};

_Static_assert(sizeof(struct npu_submit) == 104, "layout of npu_submit");

/* The memory that holds an address, or NULL. The lock is held for these. */
struct memory *memory_at(uint64_t address);
struct memory *memory_of_cookie(uint64_t cookie);

/* A context begins and ends with the memory of its tasks. The lock is held. */
void context_opened(struct memory *tasks);
void memory_is_freed(struct memory *memory);

/* 0, or -1 and errno. */
int submit(struct npu_submit *request);
