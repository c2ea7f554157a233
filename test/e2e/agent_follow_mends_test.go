package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
)

// What somebody else changes of that which the configuration in force needs is set back,
// and the log says so; traffic goes on, and detach leaves all as it was found.
func TestAgentFollowMends(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		f := newFollowed(t, kind, followConfig)
		read := func(name string) string {
			t.Helper()
			var text []byte
			err := f.Gateway.Do(func() (err error) { text, err = os.ReadFile("/proc/sys/" + name); return err })
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(text))
		}
		// mended does what somebody does, and waits until it is undone.
		mended := func(what string, does func(), undone func() bool, said string) {
			t.Helper()
			before := strings.Count(f.agent.log.String(), said)
			does()
			begun := time.Now()
			retry(t, func() error {
				if !undone() {
					return fmt.Errorf("%s: nobody mends it; status: %q", what, f.status().Problems)
				}
				return nil
			})
			t.Logf("%-40s mended after %d ms", what, time.Since(begun).Milliseconds())
			retry(t, func() error {
				if strings.Count(f.agent.log.String(), said) <= before {
					return fmt.Errorf("%s: the agent does not say %q", what, said)
				}
				return nil
			})
			f.resumes(what, func() {})
		}
		for name, wrong := range map[string]string{
			"net/ipv4/ip_forward":                               "0",
			"net/ipv6/conf/all/forwarding":                      "0",
			"net/netfilter/nf_conntrack_tcp_be_liberal":         "0",
			"net/netfilter/nf_conntrack_tcp_ignore_invalid_rst": "0",
		} {
			right := read(name)
			if right == "" || right == wrong {
				continue // not of this kernel, or not needed here
			}
			mended(name, func() {
				if err := f.Gateway.Sysctl(name, wrong); err != nil {
					t.Fatal(err)
				}
			}, func() bool { return read(name) == right }, strings.ReplaceAll(name, "/", ".")+" set to "+right+" again")
		}
		offload := func() string { return f.inGateway("ethtool", "-k", "eth2") }
		mended("checksum offload", func() { f.inGateway("ethtool", "-K", "eth2", "tx", "on") },
			func() bool { return strings.Contains(offload(), "tx-checksumming: off") }, "checksum offload of eth2 switched off again")
		for _, ifname := range []string{"eth0", "eth3", "eth2"} {
			programs := func() (n int) {
				for what, text := range f.programsOf(f.Gateway) {
					if strings.Contains(what, " "+ifname+" ") {
						n += strings.Count(text, "tapgate_")
					}
				}
				return n
			}
			before := programs()
			if before < 2 {
				t.Fatalf("%s has %d programs of ours", ifname, before)
			}
			if kind == loader.AttachClsact {
				mended("clsact of "+ifname+" deleted", func() { f.inGateway("tc", "qdisc", "del", "dev", ifname, "clsact") },
					func() bool { return programs() == before }, "attached to \\\""+ifname+"\\\" ")
				continue
			}
			mended("links of "+ifname+" detached", func() { f.detachLinks(ifname) },
				func() bool { return programs() == before }, "attached to \\\""+ifname+"\\\" ")
		}
		if f.status().Gateway.Reorders {
			mended("reassembly deleted", func() { f.ip(f.Gateway, "link del tg-frag0") },
				func() bool { return f.status().Gateway.Reorders }, "the reassembly of fragments set up again")
		}
		f.agent.end()
		f.must("detach")
		f.nothingLeft()
		if !strings.Contains(offload(), "tx-checksumming: on") {
			t.Error("the checksum offload was not put back")
		}
	})
}

// detachLinks has the kernel take our programs from an interface, as bpftool can.
func (f *followed) detachLinks(ifname string) {
	f.t.Helper()
	index := f.Gateway.Interface(ifname).Index
	entries, err := os.ReadDir(fmt.Sprintf("%s/links/%d", f.stateDir(), index))
	if err != nil || len(entries) == 0 {
		f.t.Fatalf("no links of %s: %v", ifname, err)
	}
	for _, e := range entries {
		if out, err := exec.Command("bpftool", "link", "detach", "pinned", fmt.Sprintf("%s/links/%d/%s", f.stateDir(), index, e.Name())).CombinedOutput(); err != nil {
			f.t.Fatalf("bpftool: %v\n%s", err, out)
		}
	}
}
