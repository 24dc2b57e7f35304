/* The connection to npu.py: a length in bytes (uint32), then as many bytes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_TENSORS = 16, TYPE_UINT8 = 3 };

/* npu.py describes a tensor so. */
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

/* A connection for a .rknn, or for the one with the weights in this memory; -1 and a sentence where there is none. */
int link_open(const void *model, uint32_t size, struct description *found, char sentence[512]);

/* input: type (uint32, as librknnrt.so numbers them) and values; output: the int8 values of each. */
bool link_compute(int link, const void *input, uint32_t size, const struct description *model, int8_t *output[]);

/* Closes a connection, and frees the outputs. */
void link_close(int link, const struct description *model, int8_t *output[]);
