#include <ringhold/ringhold.h>

int rh_api_version(void)
{
    return RH_API_VERSION;
}
