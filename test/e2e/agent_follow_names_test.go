package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
)

func (f *followed) index(ifname string) int {
	f.t.Helper()
	for _, m := range f.status().Members {
		if m.Interface == ifname {
			return m.Ifindex
		}
	}
	return 0
}

// An interface that only has another name goes on as it is, and status says so: nobody
// else is meant by the name. When another interface takes the name, that one is meant.
func TestAgentFollowNames(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, loader.AttachAuto, followConfig)
	rename := func(from, to string) {
		t.Helper()
		f.ip(f.Gateway, "link set "+from+" name "+to) // it stays up: 6.2 and newer
	}
	was := f.index("eth3")
	f.sameOutside("renamed", func() {
		rename("eth3", "lan0")
		f.allFlows("eth3 renamed", time.Now())
		f.wantProblems("interface eth3 is called lan0 now")
		// Meanwhile others come and go, and the configuration is put in force again.
		f.pull("eth2")
		f.plug("eth2", f.Sensor)
		f.allFlows("eth2 pulled and put back while eth3 has another name", time.Now())
		f.wantProblems("interface eth3 is called lan0 now")
		rename("lan0", "eth3")
		f.resumes("eth3 has its name again", func() {})
	})
	if now := f.index("eth3"); now != was {
		t.Errorf("eth3 has the index %d, before %d", now, was)
	}
	// The names of two interfaces are exchanged: what is eth3 now gets the programs.
	rename("eth3", "old3")
	peer := f.in[0].Interfaces[0]
	f.ip(f.Gateway, "link add eth3 type veth peer name eth1 netns "+f.in[0].Name)
	f.ip(f.Gateway, "link set eth3 up")
	retry(t, func() error {
		if f.index("eth3") == was {
			return errors.New("the programs are on the interface that was eth3")
		}
		return nil
	})
	f.ip(f.Gateway, "link set old3 down")
	f.ip(f.in[0], "link del eth0")
	f.resumes("another interface is eth3 now", func() {
		f.addresses("eth3")
		for _, a := range []string{peer.Addr.String(), peer.Addr6.String()} {
			f.ip(f.in[0], "addr add "+a+" dev eth1 nodad")
		}
		f.ip(f.in[0], "link set eth1 up")
		f.homeRoutes(f.in[0], "eth3")
	})
	for what, text := range f.programsOf(f.Gateway) {
		if strings.Contains(what, " old3 ") && strings.Contains(text, "tapgate") {
			t.Errorf("still on the old one: %s %s", what, text)
		}
	}
}

// While one interface is gone for good the others come and go, and are served: a broken
// card to the sensor must not keep production from going on, nor the other way round.
func TestAgentFollowOneGone(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, loader.AttachAuto, strings.Replace(followConfig, "nat:", `nat:
  forwards:
    - {name: web, in: external, proto: tcp, port: 80, to: "192.168.3.2:80"}`, 1))
	// traffic wants the conversations to go on, whatever becomes of the copies.
	traffic := func(what string) {
		t.Helper()
		begun := time.Now()
		for name, w := range f.words {
			retry(t, func() error {
				if first, n := w.since(w.heard, begun); n < 20 {
					return fmt.Errorf("%s: %d words of %s come back; status: %q", what, n, name, f.status().Problems)
				} else if took := first.Sub(begun); took > resumeWithin {
					t.Errorf("%s: %s after %v", what, name, took)
				}
				return nil
			})
		}
		t.Logf("%-50s %d ms", what, time.Since(begun).Milliseconds())
	}
	f.pull("eth2")
	traffic("without eth2")
	f.sameOutside("without eth2", func() {
		for _, ifname := range []string{"eth3", "eth0"} {
			f.pull(ifname)
			f.plug(ifname, f.plugs()[ifname])
			traffic(ifname + " put back while eth2 is gone")
		}
	})
	if problems := f.status().Problems; !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, "interface eth2 is not there any more") }) {
		t.Errorf("status tells %q", problems)
	}
	// An interface of somebody else that takes the number of the one that is gone is none of ours.
	gone := f.index("eth2")
	f.ip(f.Gateway, fmt.Sprintf("link add other index %d type veth peer name another", gone))
	f.pull("eth3")
	f.plug("eth3", f.in[0])
	traffic("eth3 put back while another interface has the number of eth2")
	for what, text := range f.programsOf(f.Gateway) {
		if strings.Contains(what, " other ") && strings.Contains(text, "tapgate") {
			t.Errorf("on an interface of others: %s %s", what, text)
		}
	}
	f.resumes("eth2 is back", func() { f.plug("eth2", f.Sensor) })

	// Without the internal interface the sensor's can be replaced too; then all is back.
	f.pull("eth3")
	f.pull("eth2")
	f.plug("eth2", f.Sensor)
	retry(t, func() error {
		if f.index("eth2") == 0 || slices.ContainsFunc(f.status().Problems, func(p string) bool { return strings.Contains(p, "eth2") }) {
			return fmt.Errorf("eth2 is not served: %q", f.status().Problems)
		}
		return nil
	})
	f.resumes("eth3 is back", func() { f.plug("eth3", f.in[0]) })
	f.checkLedgers()
	f.agent.end()
	f.must("detach")
	f.nothingLeft()
}
