// SPDX-License-Identifier: Apache-2.0
#include "atonce.h"

#include <pthread.h>
#include <stdlib.h>

void at_once(void *(*work)(void *item), void *items, size_t size, size_t count)
{
    char *item = items;
    size_t begun = 0;
    pthread_t *threads = count > 1 ? calloc(count - 1, sizeof *threads) : NULL;
    while (threads != NULL && begun < count - 1 &&
           pthread_create(&threads[begun], NULL, work, item + begun * size) == 0)
        begun++;
    for (size_t i = begun; i < count; i++)
        (void)work(item + i * size);
    for (size_t i = 0; i < begun; i++)
        (void)pthread_join(threads[i], NULL);
    free(threads);
}
