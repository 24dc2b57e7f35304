/* The connection to npu.py. Each message is its length in bytes (uint32) and its bytes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_TENSORS = 16, TYPE_UINT8 = 3 };

/* npu.py's description of a tensor. */
struct tensor {
    char name[256];
    uint32_t n_dims, dims[4]; /* input NHWC, outputs NCHW, or fewer dimensions and then zeros */
    int32_t zp;
    float scale;
};

struct description {
    uint32_t n_input, n_output;
    struct tensor tensors[MAX_TENSORS]; /* inputs, then outputs */
};

uint32_t elements(const struct tensor *t);

/* Opens a connection for a .rknn, or for the one whose weights are in this memory. On error -1 and a sentence. */
int link_open(const void *model, uint32_t size, struct description *found, char sentence[512]);

/* input: its type (uint32, librknnrt.so's number) and values; output: the int8 values of each output. */
bool link_compute(int link, const void *input, uint32_t size, const struct description *model, int8_t *output[]);

/* Closes a connection, and frees the outputs. */
void link_close(int link, const struct description *model, int8_t *output[]);
