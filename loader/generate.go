package loader

// The programs are written in C (bpf, headers) and compiled by bpf2go into an
// object file and the Go types of headers/abi.h. Both are committed, so that
// building tapgate needs Go alone. To compile them again run scripts/generate.sh,
// which sees to the pinned clang and to the paths of the kernel's headers. One
// object serves amd64 and arm64: both are little-endian.

//go:generate go tool bpf2go -go-package loader -output-stem tapgate -tags linux -no-global-types -target bpfel -cc clang-19 -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" -type tg_role -type tg_direction -type tg_skip -type tg_reason -type tg_target_kind -type tg_nexthop_kind -type tg_count -type tg_ledger -type tg_member_count -type tg_copy -type tg_member -type tg_target -type tg_nexthop_key -type tg_nexthop -type tg_neigh -type tg_tuple -type tg_rule_kind -type tg_rule_key -type tg_rule -type tg_policy_set -type tg_timer -type tg_setting -type tg_outside_key -type tg_outside_addr -type tg_ours_key -type tg_our_addr -type tg_half -type tg_life -type tg_origin -type tg_session -type tg_endpoint -type tg_binding -type tg_remote_key -type tg_remote -type tg_host_key -type tg_host -type tg_table_state -type tg_refusal -type tg_hit -type tg_event -type tg_log_what -type tg_log_start -type tg_log_end -type tg_lost -type tg_order -type tg_kind -type tg_pool_address -type tg_reassembly_link tapgate ../bpf/tapgate.bpf.c -- -I../headers
