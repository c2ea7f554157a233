package lab_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"tapgate/test/lab"
)

// mustPing fails the test unless every request is answered.
func mustPing(t *testing.T, from *lab.Host, to netip.Addr, count int) {
	t.Helper()
	replies, err := from.Ping(t.Context(), to, count)
	if err != nil || replies != count {
		t.Fatalf("%s pings %s: %d of %d replies, %v", from.Name, to, replies, count, err)
	}
}

func TestEveryNetworkReachesTheGateway(t *testing.T) {
	l := lab.ForTest(t, lab.SecondInternal())
	for _, h := range l.Hosts()[1:] {
		for _, i := range l.Gateway.Interfaces {
			if i.Addr.Contains(h.Addr) {
				mustPing(t, h, i.Addr.Addr(), 1)
				mustPing(t, h, i.Addr6.Addr(), 1)
			}
		}
	}
	mustPing(t, l.Second, l.Servers[0].Addr, 1)
	mustPing(t, l.Servers[0], l.Outside[0].Addr6, 1)
}

func TestAddresses(t *testing.T) {
	l := lab.ForTest(t, lab.Servers(2), lab.Outside(2), lab.SecondInternal())
	want := map[string]*lab.Host{
		"192.168.3.2": l.Servers[0], "192.168.3.3": l.Servers[1], "192.168.4.2": l.Sensor, "192.168.5.2": l.Mgmt,
		"192.168.6.2": l.Second, "203.0.113.8": l.Outside[0], "203.0.113.9": l.Outside[1], "203.0.113.1": l.Gateway,
	}
	for addr, h := range want {
		if h.Addr.String() != addr {
			t.Errorf("%s has %s, want %s", h.Name, h.Addr, addr)
		}
	}
	if got := l.Gateway.Interface("eth3").Addr.String(); got != "192.168.3.1/24" {
		t.Errorf("eth3 has %s", got)
	}
	if got := l.Servers[1].Addr6.String(); got != "2001:db8:3::3" {
		t.Errorf("second server has %s", got)
	}
	mustPing(t, l.Servers[0], l.Servers[1].Addr, 1)
	mustPing(t, l.Servers[1], l.Gateway.Interface("eth0").Addr.Addr(), 1)
}

func TestMasqueradeHidesTheServer(t *testing.T) {
	l := lab.ForTest(t)
	server, outside := l.Servers[0], l.Outside[0]
	// Without it the reply has no way back.
	if n, err := server.Ping(t.Context(), outside.Addr, 1); err != nil || n != 0 {
		t.Fatalf("without masquerade: %d replies, %v", n, err)
	}
	if err := l.Masquerade(); err != nil {
		t.Fatal(err)
	}
	c, err := outside.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	mustPing(t, server, outside.Addr, 3)
	frames, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]int{}
	for _, f := range frames {
		if etherType, at := f.EtherType(); etherType == 0x0800 {
			sources[net.IP(f.Data[at+12:at+16]).String()]++
		}
	}
	if len(sources) != 1 || sources["203.0.113.1"] != 3 {
		t.Errorf("sources outside: %v, want the gateway's 203.0.113.1 three times", sources)
	}
}

func TestRoutedOutside(t *testing.T) {
	l := lab.ForTest(t, lab.RoutedOutside())
	mustPing(t, l.Outside[0], l.Servers[0].Addr, 1)
	mustPing(t, l.Outside[0], l.Servers[0].Addr6, 1)
}

func TestSensorOptions(t *testing.T) {
	silent := lab.ForTest(t, lab.SilentSensor())
	if n, err := silent.Gateway.Ping(t.Context(), netip.MustParseAddr("192.168.4.2"), 1); n != 0 {
		t.Errorf("silent sensor: %d replies, %v", n, err)
	}
	none := lab.ForTest(t, lab.NoSensor())
	if none.Sensor != nil || none.Gateway.Interface("eth2").Name != "" {
		t.Error("a lab without sensor has one")
	}
}

func TestMTU(t *testing.T) {
	l := lab.ForTest(t, lab.MTU(1400), lab.Servers(2))
	for _, h := range l.Hosts() {
		err := h.Do(func() error {
			links, err := netlink.LinkList()
			for _, link := range links {
				if a := link.Attrs(); a.Name != "lo" && a.Flags&net.FlagUp != 0 && a.MTU != 1400 {
					t.Errorf("%s %s has MTU %d", h.Name, a.Name, a.MTU)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	// In fragments.
	if n, err := l.Servers[0].PingSize(t.Context(), l.Gateway.Interface("eth3").Addr.Addr(), 1, 3000); n != 1 || err != nil {
		t.Errorf("3000 bytes: %d replies, %v", n, err)
	}
	if err := l.Gateway.SetMTU("eth2", 1300); err != nil {
		t.Error(err)
	}
}

func TestCommandRunsInTheHost(t *testing.T) {
	l := lab.ForTest(t)
	inside, err := l.Sensor.Command(t.Context(), "cat", "/proc/net/dev").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(inside), "eth0:") || strings.Contains(string(inside), "eth3:") {
		t.Errorf("not the sensor's interfaces: %s", inside)
	}
	mine, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	if string(mine) == string(inside) {
		t.Error("the caller has moved into the namespace")
	}
	if _, err := l.Sensor.Command(t.Context(), "sh", "-c", "echo oops >&2; exit 3").Output(); err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("error without what the program said: %v", err)
	}
}

func TestCloseEndsCommands(t *testing.T) {
	l := lab.ForTest(t)
	cmd := l.Mgmt.Command(context.Background(), "sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("command lived until its end")
	}
}

func TestDoNests(t *testing.T) {
	l := lab.ForTest(t)
	here := func() string {
		name, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		return name
	}
	seen := map[string]bool{here(): true}
	err := l.Gateway.Do(func() error {
		gateway := here()
		err := l.Sensor.Do(func() error { seen[here()] = true; return errors.New("from inside") })
		if here() != gateway {
			t.Error("not back in the gateway")
		}
		seen[gateway] = true
		return err
	})
	if err == nil || err.Error() != "from inside" {
		t.Errorf("error of f is lost: %v", err)
	}
	if len(seen) != 3 || !seen[here()] {
		t.Errorf("namespaces: %v", seen)
	}
}

// leftovers lists what exists under the names of labs of this process.
func leftovers(t *testing.T, prefix string) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		found, err := filepath.Glob(filepath.Join(dir, prefix+"-*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/"+prefix+"-") {
			all = append(all, line)
		}
	}
	return all
}

func TestCloseLeavesNothing(t *testing.T) {
	l, err := lab.New(lab.Prefix("tgclose"), lab.Servers(2))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := l.MountBPFFS()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.MountBPFFS(); err != nil || again != dir {
		t.Errorf("mounted again: %q, %v", again, err)
	}
	if len(leftovers(t, "tgclose")) == 0 {
		t.Fatal("the test does not see the lab")
	}
	if _, err := l.Sensor.Capture("eth0", lab.Both); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if left := leftovers(t, "tgclose"); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if _, err := l.MountBPFFS(); err == nil {
		t.Error("a closed lab mounts")
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	for what, opt := range map[string]lab.Option{
		"MTU below what IPv4 allows":   lab.MTU(20),
		"no servers":                   lab.Servers(0),
		"more servers than addresses":  lab.Servers(300),
		"name too long for the kernel": lab.Prefix("tgfail" + strings.Repeat("x", 300)),
	} {
		l, err := lab.New(lab.Prefix("tgfail"), opt)
		if err == nil {
			t.Errorf("%s: built", what)
			l.Close()
		}
		if left := leftovers(t, "tgfail"); left != nil {
			t.Errorf("%s: left behind: %v", what, left)
		}
	}
}
