/* See link.h. */
#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

uint32_t elements(const struct tensor *t) {
    uint32_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i];
    return n;
}

static bool send_all(int link, const void *data, size_t size) {
    for (const char *at = data; size;) {
        ssize_t n = send(link, at, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool receive_all(int link, void *data, size_t size) {
    for (char *at = data; size;) {
        ssize_t n = recv(link, at, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool send_message(int link, const void *data, uint32_t size) {
    return send_all(link, &size, sizeof size) && send_all(link, data, size);
}

/* Reads npu.py's answer: the numbers of inputs and outputs and their descriptions, or 0, 0 and an error message. */
static bool introduce(int link, const void *model, uint32_t size, struct description *found, char sentence[512]) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/npu.sock"};
    uint32_t counts[2], length;
    strcpy(sentence, "npu.py does not answer");
    if (connect(link, (struct sockaddr *)&address, sizeof address) || !send_message(link, model, size) ||
        !receive_all(link, counts, sizeof counts))
        return false;
    if (!counts[0]) {
        memset(sentence, 0, 512);
        if (receive_all(link, &length, sizeof length))
            receive_all(link, sentence, length < 511 ? length : 511);
        return false;
    }
    strcpy(sentence, "the model has more inputs or outputs than can be emulated");
    found->n_input = counts[0];
    found->n_output = counts[1];
    return counts[0] == 1 && counts[0] + counts[1] <= MAX_TENSORS &&
           receive_all(link, found->tensors, sizeof found->tensors[0] * (counts[0] + counts[1]));
}

int link_open(const void *model, uint32_t size, struct description *found, char sentence[512]) {
    int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (introduce(link, model, size, found, sentence))
        return link;
    close(link);
    return -1;
}

bool link_compute(int link, const void *input, uint32_t size, const struct description *model, int8_t *output[]) {
    bool ok = send_message(link, input, size);
    for (uint32_t i = 0; i < model->n_output && ok; i++)
        ok = receive_all(link, output[i], elements(&model->tensors[model->n_input + i]));
    return ok;
}

void link_close(int link, const struct description *model, int8_t *output[]) {
    close(link);
    for (uint32_t i = 0; i < model->n_output; i++)
        free(output[i]);
}
