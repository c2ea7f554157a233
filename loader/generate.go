package loader

// The programs are written in C (bpf, headers) and compiled by bpf2go into an
// object file and the Go types of headers/abi.h. Both are committed, so that
// building tapgate needs Go alone. To compile them again run scripts/generate.sh,
// which sees to the pinned clang and to the paths of the kernel's headers. One
// object serves amd64 and arm64: both are little-endian.

//go:generate go tool bpf2go -go-package loader -output-stem tapgate -tags linux -no-global-types -target bpfel -cc clang-19 -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" -type tg_role -type tg_direction -type tg_skip -type tg_reason -type tg_target_kind -type tg_nexthop_kind -type tg_count -type tg_ledger -type tg_member_count -type tg_copy -type tg_member -type tg_target -type tg_nexthop_key -type tg_nexthop -type tg_neigh tapgate ../bpf/tapgate.bpf.c -- -I../headers
