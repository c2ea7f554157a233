package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// offers tells the kernel what the guest behind a tap device takes over.
func offers(t *testing.T, f *os.File, flags int) {
	t.Helper()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOFFLOAD, flags); err != nil {
		t.Fatalf("TUNSETOFFLOAD %#x: %v", flags, err)
	}
}

// A guest took back what it had offered: its interface cannot be given back the
// checksum offload, and must not keep a detach or a change from its end.
func TestMendedOffloadThatIsGone(t *testing.T) {
	kernels.Require(t, "tun")
	t.Parallel()
	const guest = `
zones:
  internal: {interfaces: [eth3]}
  dmz:      {interfaces: [eth2, tap0]}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
      - {l2: tap0}
`
	const warning = `warning: switch tx-checksum-ip-generic of "tap0" on: the driver did not`
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		tap := openTun(t, g, "tap0", unix.IFF_TAP|unix.IFF_VNET_HDR)
		checksum := func() string {
			for line := range strings.Lines(inHost(t, g.Gateway, "ethtool", "-k", "tap0")) {
				if name, is, _ := strings.Cut(strings.TrimSpace(line), ": "); name == "tx-checksum-ip-generic" {
					return is
				}
			}
			t.Fatal("tap0 has no tx-checksum-ip-generic")
			return ""
		}
		put := func() {
			t.Helper()
			offers(t, tap, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
			if got := checksum(); got != "on" {
				t.Fatalf("before apply the offload is %s: the test would show nothing", got)
			}
			g.apply(guest)
			if got := checksum(); got != "off" {
				t.Errorf("after apply the offload is %s", got)
			}
			offers(t, tap, 0)
		}
		for _, args := range [][]string{{"detach"}, {"detach", "--force"}} {
			put()
			if r := g.tapgate(args...); r.code != 0 || !strings.Contains(r.stderr, warning) {
				t.Errorf("%q: %s", args, r)
			}
			g.nothingLeft()
			if r := g.tapgate("detach"); r.code != 0 || strings.Contains(r.stderr, "warning") {
				t.Errorf("detach again: %s", r)
			}
		}
		put()
		if r := g.tapgateIn(example, "apply", "-f", "-"); r.code != 0 || !strings.Contains(r.stderr, warning) {
			t.Errorf("apply without tap0: %s", r)
		}
		g.wantProblems()
		for _, command := range []string{"status", "detach"} {
			if r := g.tapgate(command); r.code != 0 || strings.Contains(r.stderr, "tap0") {
				t.Errorf("%s once tap0 was told of: %s", command, r)
			}
		}
		g.nothingLeft()
		if features := g.inGateway("ethtool", "-k", "eth2"); !strings.Contains(features, "tx-checksumming: on") {
			t.Errorf("the offload of eth2 was not put back:\n%s", features)
		}
	})
}

// takeState makes the state of old that of next, as when the kernel gives next
// the number of old.
func (g *gateway) takeState(old uint64, next *space) {
	g.t.Helper()
	now := inodeOf(g.t, "/run/netns/"+next.name)
	if now == old {
		return
	}
	root := filepath.Join(g.bpffs, "tapgate")
	if err := os.Rename(filepath.Join(root, strconv.FormatUint(old, 10)), filepath.Join(root, strconv.FormatUint(now, 10))); err != nil {
		g.t.Fatal(err)
	}
}

// What the journal of a namespace that is gone says of eth2 and eth3 is not
// true of the interfaces of these names in the one that has its number now.
func TestMendedStateOfTheDeadTouchesNothing(t *testing.T) {
	kernels.Require(t, "netns_cookie")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t)
		run := func(s *space, args ...string) result {
			return g.tapgateAt(s.name, append(args, "--attach-kind", string(kind))...)
		}
		for _, way := range []string{"apply", "detach", "damaged", "cut short"} {
			old := newSpace(t, true)
			if r := run(old, attachSpace...); r.code != 0 {
				t.Fatal(r)
			}
			inode := inodeOf(t, "/run/netns/"+old.name)
			dir := filepath.Join(g.bpffs, "tapgate", strconv.FormatUint(inode, 10))
			switch way {
			case "damaged": // so that it is not understood, but the journal is
				if err := os.Remove(filepath.Join(dir, "programs", "tapgate_ask")); err != nil {
					t.Fatal(err)
				}
			case "cut short": // before its first generation was in force
				clearRecords(t, dir)
			}
			old.remove(t)
			next := newSpace(t, true)
			g.takeState(inode, next)
			settings := func() string {
				var all []string
				for _, dev := range []string{"eth2", "eth3"} {
					features := shOut(t, "ip netns exec "+next.name+" ethtool -k "+dev)
					qdiscs := shOut(t, "ip netns exec "+next.name+" tc qdisc show dev "+dev)
					filters := shOut(t, "ip netns exec "+next.name+" sh -c 'tc filter show dev "+dev+" ingress; tc filter show dev "+dev+" egress'")
					all = append(all, dev, features, qdiscs, filters)
				}
				return strings.Join(all, "\n")
			}
			for _, line := range []string{"ethtool -K eth2 tx off", "tc qdisc add dev eth2 clsact", "tc qdisc add dev eth3 clsact"} {
				sh(t, "ip netns exec "+next.name+" "+line)
			}
			before := settings()
			switch way {
			case "apply":
				if r := run(next, attachSpace...); r.code != 0 {
					t.Errorf("%s: attach: %s", way, r)
				}
				if r := run(next, "detach"); r.code != 0 {
					t.Errorf("%s: %s", way, r)
				}
			case "damaged":
				if r := run(next, "detach", "--force"); r.code != 0 {
					t.Errorf("%s: %s", way, r)
				}
			default:
				if r := run(next, "detach"); r.code != 0 {
					t.Errorf("%s: %s", way, r)
				}
			}
			g.nothingLeft()
			if after := settings(); after != before {
				t.Errorf("%s: the new namespace's own settings were changed:\n%s", way, lineDiff(before, after))
			}
			next.remove(t)
		}
	})
}

// clearRecords takes the records of both generations, but not the journal.
func clearRecords(t *testing.T, dir string) {
	t.Helper()
	m := pinnedMap(t, filepath.Join(dir, "maps", "tg_records"))
	defer m.Close()
	for _, key := range []uint32{0, 1} {
		if err := m.Put(key, make([]byte, m.ValueSize())); err != nil {
			t.Fatal(err)
		}
	}
}
