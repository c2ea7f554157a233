package e2e

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/gopacket/gopacket"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// fastIsolated has two internal zones, and lets nobody speak to mgmt.
const fastIsolated = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  lab:      {role: internal, interfaces: [eth5]}
  dmz:      {interfaces: [eth2]}
  mgmt:     {interfaces: [eth4]}
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
    - {from: lab, to: external, ipv6: true}
policies:
  - {name: no-telnet, from: internal, to: external, proto: tcp, ports: [23], action: drop}
  - {name: apart, from: lab, to: internal, action: drop}
`

// withoutFilter has the gateway's kernel take sources as they come: what is spoofed
// is ours to find.
func (g *gate) withoutFilter() {
	g.t.Helper()
	for _, name := range []string{"all", "eth0", "eth2", "eth3", "eth4", "eth5"} {
		if err := g.Gateway.Sysctl("net/ipv4/conf/"+name+"/rp_filter", "0"); err != nil {
			g.t.Fatal(err)
		}
	}
}

// by is a frame of a conversation as another station would send it, with a text.
func (d *dialogue) by(p *peer, way int, text string) []byte {
	flags := uint8(0)
	if d.proto == pkt.ProtoTCP {
		flags = pkt.ACK | pkt.PSH
	}
	f := d.frame(way, flags, []byte(text))
	copy(f, p.Gateway)
	copy(f[6:], p.MAC)
	return f
}

// A flow on the fast path is nobody else's: what has its addresses and ports and
// comes by another interface, and a remote's packets past the translation, go where
// they go by the stack, nowhere; and the flow goes on.
func TestFastSpoofed(t *testing.T) {
	t.Parallel()
	for _, forwarding := range []string{"", forwardKernel} {
		t.Run("forwarding "+forwarding, func(t *testing.T) {
			g := newGateLab(t, lab.SecondInternal())
			g.forwarding = forwarding
			g.withoutFilter()
			g.apply(fastIsolated)
			others := map[string]*peer{
				"lab": g.stationAt(g.Second, 40), "mgmt": g.stationAt(g.Mgmt, 40), "dmz": g.stationAt(g.Sensor, 40),
				"external": g.station(atOutside, 1), "internal": g.station(atInside, 1),
			}
			g.families(func(g *gate, v6 bool) {
				for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
					in, out := g.pair()
					d := g.newDialogue(proto, in, 5000, out, 9000, v6)
					d.open()
					d.takesFast()
					for name, p := range others {
						for _, way := range []int{wayOut, wayIn} {
							if name == "internal" && way == wayOut || name == "external" && way == wayIn {
								continue // another MAC of the same network: nobody can tell
							}
							text := g.text()
							if err := p.Send(d.by(p, way, text)); err != nil {
								g.t.Fatal(err)
							}
							for _, at := range []*peer{in, out} {
								g.fence(p, at)
								if at.got(func(p *pkt.Parsed) bool { return string(p.Payload) == text }) {
									g.t.Errorf("protocol %d, direction %d: what %s has sent arrived at %s", proto, way, name, at.Addr)
								}
							}
						}
					}
					// Past the translation: to the inside address itself.
					text := g.text()
					var l4 pkt.Layer = pkt.UDP(d.b.Port(), d.a.Port())
					if proto == pkt.ProtoTCP {
						l4 = pkt.Segment(d.b.Port(), d.a.Port(), pkt.ACK|pkt.PSH, d.seq[wayIn], d.seq[wayOut], 0)
					}
					out.send(d.a.Addr(), l4, gopacket.Payload(text))
					g.unseen(text, in, out)
					d.takesFast()
					if f := d.flow(); f.Outside != d.front.String() {
						g.t.Errorf("the flow is another one: %+v", f)
					}
				}
			})
			g.dropped("eth5")
		})
	}
}

// A host in another namespace may write anything into a packet's scratch area, that
// by which our own programs know what is done with a packet as well, and if it knew
// our secret: it gets past no zone, no policy and no translation by that.
func TestFastForged(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newDirect(t, lab.SecondInternal())
		g.kind = kind
		g.withoutFilter()
		g.apply(fastIsolated)
		secret := g.secret()
		forgers := []*lab.Host{g.in[0], g.out[0], g.Mgmt, g.Second}
		for _, h := range forgers {
			g.forge(h, secret)
		}
		in, out := g.station(atInside, 0), g.station(atOutside, 0)
		second, mgmt := g.stationAt(g.Second, 40), g.stationAt(g.Mgmt, 40)
		g.families(func(g *gate, v6 bool) {
			for _, way := range []struct{ from, to *peer }{
				{out, in}, {out, second}, {out, mgmt}, {in, mgmt}, {second, mgmt}, {second, in}, {mgmt, in}, {mgmt, out}, {mgmt, second},
			} {
				text := g.text()
				way.from.udp(5000, way.to.at(v6, 9000), text)
				way.from.tcp(5000, way.to.at(v6, 9000), pkt.SYN, 1, 0, text)
				g.unseen(text, way.to, way.from)
			}
			text := g.text()
			in.tcp(5000, out.at(v6, 23), pkt.SYN, 1, 0, text)
			g.unseen(text, out, in)
			// What may pass is translated, and as fast as others.
			for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
				for i, from := range []*peer{in, second} {
					d := g.newDialogue(proto, from, 6000, out, 9001, v6)
					d.eth[0] = []string{"eth3", "eth5"}[i]
					d.open()
					if d.front.Addr() != g.outside(v6) {
						g.t.Errorf("not translated: %s came as %s", d.a, d.front)
					}
					d.takesFast()
				}
			}
		})
		g.dropped("eth3", "eth4", "eth5", "eth0")
	})
}

// secret is what our programs put beside their mark.
func (g *gate) secret() uint32 {
	g.t.Helper()
	p, err := ebpf.LoadPinnedProgram(g.stateDir()+"/programs/tapgate_tap_in", nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		g.t.Fatal(err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		var m struct{ Name string }
		bpftool(g.t, &m, "map", "show", "id", strconv.Itoa(int(id)))
		if !strings.HasSuffix(m.Name, ".rodata") {
			continue
		}
		text := inHost(g.t, g.Gateway, "bpftool", "-j", "map", "dump", "id", strconv.Itoa(int(id)))
		_, rest, found := strings.Cut(text, `"tg_secret":`)
		var secret uint32
		if err := json.NewDecoder(strings.NewReader(rest)).Decode(&secret); found && err == nil && secret != 0 {
			return secret
		}
		g.t.Fatalf("no secret: %s", text)
	}
	g.t.Fatal("the program has no constants")
	return 0
}

// forge has everything that a host sends by eth0 wear our marks: scratch area and
// tc_index.
func (g *gate) forge(h *lab.Host, secret uint32) {
	g.t.Helper()
	const cb, tcIndex = 48, 44 // offsets in struct __sk_buff
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "forger", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm32(asm.R2, fastMagic), asm.StoreMem(asm.R1, cb+4*fastTask, asm.R2, asm.Word),
		asm.Mov.Imm32(asm.R2, int32(secret)), asm.StoreMem(asm.R1, cb+4*fastSecret, asm.R2, asm.Word),
		asm.Mov.Imm32(asm.R2, admittedTag), asm.StoreMem(asm.R1, tcIndex, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R0, 0), asm.Return(),
	}})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { p.Close() })
	err = h.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index,
			Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd: p.FD(), Name: "forger", DirectAction: true})
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// What our programs write, of headers/copy.h, fast.h and wire.h.
const (
	fastMagic   = 0x66617374
	fastTask    = 0 // places in cb
	fastSecret  = 1
	admittedTag = 0x7467
)
