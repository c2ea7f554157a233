package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"tapgate/test/lab"
)

// patience bounds waits for what the kernel does a moment later.
const patience = 20 * time.Second

// eventually waits until f has nothing to complain about.
func eventually(t *testing.T, f func() (complaint string)) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		complaint := f()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after %v still: %s", patience, complaint)
			return
		}
	}
}

// listings is what people would look at, by the command or file that shows it.
type listings map[string]string

// inGateway runs a tool in the gateway's namespace.
func (g *gateway) inGateway(name string, args ...string) string {
	g.t.Helper()
	out, err := g.Gateway.Command(g.Context(), name, args...).Output()
	if err != nil {
		g.t.Fatal(err)
	}
	return string(out)
}

// interfaces are the names of the gateway's interfaces.
func (g *gateway) interfaces() (names []string) {
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(g.inGateway("ip", "-j", "link")), &links); err != nil {
		g.t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

// list takes stock of the gateway, its BPF filesystem and the machine's mounts.
// Programs, maps and links are not in it: the machine has those of others that
// come and go, so they are followed by number (owned and gone).
func (g *gateway) list() listings {
	g.t.Helper()
	all := listings{}
	for _, command := range []string{
		"ip -j -d link", "ip -j addr", "ip -j rule", "ip -6 -j rule",
		"ip -j route show table all", "ip -6 -j route show table all", "ip -j netconf",
		"tc -j qdisc show", "bpftool -j net", "nft -j list ruleset",
	} {
		words := strings.Fields(command)
		all[command] = pretty(g.inGateway(words[0], words[1:]...))
	}
	for _, name := range g.interfaces() {
		all["ethtool -k "+name] = g.inGateway("ethtool", "-k", name)
		for _, direction := range []string{"ingress", "egress"} {
			words := []string{"-j", "filter", "show", "dev", name, direction}
			all["tc "+strings.Join(words, " ")] = pretty(g.inGateway("tc", words...))
			all["tcx "+name+" "+direction] = strings.Join(g.tcxPrograms(g.Gateway, name, direction == "egress"), "\n")
		}
	}
	all["neighbours"] = g.neighbours()
	maps.Copy(all, g.sysctls())
	all["bpffs"] = strings.Join(tree(g.t, g.bpffs), "\n")
	all["mounts"] = mountsUnder(g.t, g.Dir)
	return all
}

// tcxPrograms are the names of TCX programs in the order they run (older
// bpftools do not list them), none on a kernel without.
func (g *gateway) tcxPrograms(h *lab.Host, ifname string, egress bool) (names []string) {
	g.t.Helper()
	attach := ebpf.AttachTCXIngress
	if egress {
		attach = ebpf.AttachTCXEgress
	}
	err := h.Do(func() error {
		dev, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		res, err := link.QueryPrograms(link.QueryOptions{Target: dev.Index, Attach: attach})
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range res.Programs {
			prog, err := ebpf.NewProgramFromID(p.ID)
			if err != nil {
				return err
			}
			info, err := prog.Info()
			prog.Close()
			if err != nil {
				return err
			}
			names = append(names, info.Name)
		}
		return nil
	})
	if err != nil {
		g.t.Fatalf("list TCX programs of %s: %v", ifname, err)
	}
	return names
}

// pretty gives JSON a line for each value, so that differences can be read.
func pretty(s string) string {
	var b bytes.Buffer
	if json.Indent(&b, []byte(s), "", " ") != nil {
		return s
	}
	return b.String()
}

// neighbours are those that somebody has set. What the kernel learns it forgets when it
// likes: earlier where the networks of other tests fill its table.
func (g *gateway) neighbours() string {
	var list []map[string]any
	if err := json.Unmarshal([]byte(g.inGateway("ip", "-j", "neigh", "show", "nud", "all")), &list); err != nil {
		g.t.Fatal(err)
	}
	var lines []string
	for _, n := range list {
		_, managed := n["managed"]
		if states, _ := n["state"].([]any); managed || slices.Contains(states, any("PERMANENT")) {
			lines = append(lines, fmt.Sprint(n["dst"], n["dev"], n["lladdr"]))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// sysctls reads all of /proc/sys/net as the gateway has it.
func (g *gateway) sysctls() listings {
	all := listings{}
	err := g.Gateway.Do(func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			switch d.Name() {
			case "nf_conntrack_count", "fib_multipath_hash_seed":
				return nil // a counter; a number that may not be read
			}
			if text, err := os.ReadFile(path); err == nil { // some can only be written
				all[path] = string(text)
			}
			return nil
		})
	})
	if err != nil {
		g.t.Fatal(err)
	}
	if len(all) < 100 {
		g.t.Fatalf("only %d sysctls could be read", len(all))
	}
	return all
}

// tree lists the files and folders below dir.
func tree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// mountsUnder are the mounts whose place begins with dir.
func mountsUnder(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// difference says what is not the same, "" if all is.
func (before listings) difference(now listings) string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(before)) {
		if _, ok := now[what]; !ok {
			fmt.Fprintf(&b, "%s: gone\n", what)
		} else if before[what] != now[what] {
			fmt.Fprintf(&b, "%s:\n%s", what, lineDiff(before[what], now[what]))
		}
	}
	for _, what := range slices.Sorted(maps.Keys(now)) {
		if _, ok := before[what]; !ok {
			fmt.Fprintf(&b, "%s: new: %s\n", what, now[what])
		}
	}
	return b.String()
}

// lineDiff shows the lines of one text that the other has not.
func lineDiff(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out strings.Builder
	for _, line := range as {
		if !slices.Contains(bs, line) {
			out.WriteString("  - " + line + "\n")
		}
	}
	for _, line := range bs {
		if !slices.Contains(as, line) {
			out.WriteString("  + " + line + "\n")
		}
	}
	return out.String()
}

// unchanged fails unless all listings are soon as they were.
func (g *gateway) unchanged(before listings, what string) {
	g.t.Helper()
	eventually(g.t, func() string {
		if d := before.difference(g.list()); d != "" {
			return what + ": listings are not as before:\n" + d
		}
		return ""
	})
}

// exchange is a bit of everything: a ping through the gateway, and the sensor
// asking for the gateway's address.
func (g *gateway) exchange() {
	g.t.Helper()
	const pings = 2
	if n, err := g.Servers[0].Ping(g.Context(), g.Outside[0].Addr, pings); err != nil || n != pings {
		g.t.Fatalf("%d of %d pings answered, %v", n, pings, err)
	}
	capture, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		g.t.Fatal(err)
	}
	ours, theirs := g.Gateway.Interface("eth2"), g.Sensor.Interfaces[0]
	question := arpQuestion(theirs, ours.Addr.Addr().AsSlice())
	if err := g.Sensor.Send(question); err != nil {
		g.t.Fatal(err)
	}
	if _, err := capture.WaitFor(func(frames []lab.Frame) bool {
		return slices.ContainsFunc(frames, func(f lab.Frame) bool {
			kind, _ := f.EtherType()
			p := f.Payload()
			return kind == 0x0806 && len(p) >= 28 && p[7] == 2 && bytes.Equal(p[8:14], ours.MAC)
		})
	}, patience); err != nil {
		g.t.Fatalf("the gateway does not answer the sensor's ARP question: %v", err)
	}
	if _, err := capture.Stop(); err != nil {
		g.t.Fatal(err)
	}
}

// arpQuestion asks everybody who has an IPv4 address.
func arpQuestion(from lab.Interface, target []byte) []byte {
	f := append(bytes.Repeat([]byte{0xff}, 6), from.MAC...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(f, from.MAC...)
	f = append(f, from.Addr.Addr().AsSlice()...)
	f = append(f, make([]byte, 6)...)
	f = append(f, target...)
	return append(f, make([]byte, 18)...)
}
