/*
 * A node as placement sees it: what a ring and a layout are made of.
 */
#ifndef RINGHOLD_NODE_H
#define RINGHOLD_NODE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names and zones are any bytes, NUL among them, copied by the functions that take them. */
typedef struct rh_node {
    const void *name;
    size_t name_bytes;
    const void *zone; /* NULL: none; beside zoned nodes such a node is a zone of its own */
    size_t zone_bytes;
    double weight; /* finite and >= 0; 0: drained, that is present and owning nothing */
} rh_node;

#ifdef __cplusplus
}
#endif

#endif
