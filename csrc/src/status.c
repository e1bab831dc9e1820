#include <stdlib.h>

#include <ringhold/status.h>

const char *rh_status_name(rh_status status)
{
    switch (status) {
    case RH_OK:
        return "RH_OK";
    case RH_NO_MEMORY:
        return "RH_NO_MEMORY";
    case RH_INVALID_ARGUMENT:
        return "RH_INVALID_ARGUMENT";
    case RH_TOO_LARGE:
        return "RH_TOO_LARGE";
    case RH_DUPLICATE_NODE:
        return "RH_DUPLICATE_NODE";
    case RH_UNKNOWN_NODE:
        return "RH_UNKNOWN_NODE";
    case RH_EMPTY_RING:
        return "RH_EMPTY_RING";
    case RH_NOT_ENOUGH_NODES:
        return "RH_NOT_ENOUGH_NODES";
    case RH_CORRUPT:
        return "RH_CORRUPT";
    case RH_NOT_SUPPORTED:
        return "RH_NOT_SUPPORTED";
    case RH_CONFLICT:
        return "RH_CONFLICT";
    case RH_NOT_OWNED:
        return "RH_NOT_OWNED";
    case RH_DEADLOCK:
        return "RH_DEADLOCK";
    }
    return "RH_UNKNOWN_STATUS";
}

void rh_free(void *memory)
{
    free(memory);
}
