/* SPDX-License-Identifier: Apache-2.0 */
/* Small files and folders. All of it retries EINTR. */
#ifndef HYPEMAN_FILES_H
#define HYPEMAN_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Read at most capacity - 1 bytes and end them with a NUL. The length, or -1 with errno. */
ssize_t file_read(const char *path, char *buffer, size_t capacity);

/* A whole file of at most max bytes as a NUL-ended allocation, or NULL with errno (EFBIG: longer than max).
 */
char *file_load(const char *path, size_t max);

/* Write text to a file: to one that is there (a kernel's knob), or with O_CREAT in `flags`. False with errno.
 */
bool file_write(const char *path, int flags, const char *text);

/* The same of a path that is relative to a folder by its fd. */
ssize_t file_read_at(int folder, const char *path, char *buffer, size_t capacity);
bool file_write_at(int folder, const char *path, int flags, const char *text);

/* So many bytes from there on. False with errno (ENODATA: there are fewer). */
bool file_read_exactly(int fd, void *buffer, size_t size, off_t offset);

/* mkdir -p. False with errno; a folder that is there is success, anything else there is ENOTDIR. */
bool folder_make(const char *path, mode_t mode);

void close_fd(int *fd);

#endif
