package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// Query is the first packet of a connection that somebody asks about.
type Query struct {
	Src, Dst netip.Addr
	Proto    string // as in Flow, or a number
	Port     uint16 // asked for at Dst; 0 for protocols without ports
	Sport    uint16 // if given, flows that are there already are looked up, too
	From     string // zone that the packet comes from; found by Src if empty
}

// Explanation is what the gateway would do with such a packet, by the maps in
// force. It changes nothing and sends nothing.
type Explanation struct {
	Proto string          `json:"proto"`
	Src   string          `json:"src"` // ADDR:PORT, or the address where there is no port
	Dst   string          `json:"dst"`
	From  ExplanationEnd  `json:"from"`
	To    *ExplanationEnd `json:"to,omitempty"` // nil: it does not get that far
	// Flow: it belongs to one that is there, so no rule is asked.
	Flow       *Flow                  `json:"flow,omitempty"`
	Forward    *ExplanationForward    `json:"forward,omitempty"`
	Policy     string                 `json:"policy,omitempty"` // that decides; the zones' roles do if empty
	Masquerade *ExplanationMasquerade `json:"masquerade,omitempty"`
	Way        *ExplanationWay        `json:"way,omitempty"`
	// Forwarding: how the packets of its flow go on; nil if there is none.
	Forwarding *ExplanationForwarding `json:"forwarding,omitempty"`
	Mirrors    []ExplanationMirror    `json:"mirrors"`
	Verdict    string                 `json:"verdict"` // "pass", "drop", or "host": left to the gateway's own stack and firewall
	Reason     string                 `json:"reason"`  // as status counts it, or what the kernel says
	Why        string                 `json:"why"`     // the same in words
	Steps      []ExplanationStep      `json:"steps"`   // all of it in words, in the order of the packet
}

// ExplanationEnd is where the packet comes in or leaves.
type ExplanationEnd struct {
	Zone      string `json:"zone,omitempty"` // none: the interface is in no zone
	Role      Role   `json:"role,omitempty"`
	Interface string `json:"interface,omitempty"` // none: the gateway itself
}

// ExplanationForward is the port forward that answers.
type ExplanationForward struct {
	Name    string `json:"name"`
	To      string `json:"to"` // ADDR:PORT
	Hairpin bool   `json:"hairpin,omitempty"`
}

// ExplanationMasquerade is the rule that translates the source.
type ExplanationMasquerade struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"` // one of these, the same for all flows of a host
	Ports     []string `json:"ports"`     // one of these, at random
	// EndpointIndependent: everybody may answer.
	EndpointIndependent bool `json:"endpoint_independent,omitempty"`
}

// ExplanationWay is the host's route.
type ExplanationWay struct {
	Interface string `json:"interface"`
	Nexthop   string `json:"nexthop,omitempty"` // none: on the link, or the host itself
	Local     bool   `json:"local,omitempty"`   // the destination is an address of the gateway
}

// ExplanationForwarding says which way the packets of a flow take.
type ExplanationForwarding struct {
	Fast bool   `json:"fast"` // past the host's stack, once both sides have spoken; else through it
	Why  string `json:"why"`
}

// ExplanationMirror is a mirror that copies the packet.
type ExplanationMirror struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface"`
	Direction string   `json:"direction"` // "ingress" or "egress"
	Targets   []string `json:"targets"`
}

// ExplanationStep is a line of the story.
type ExplanationStep struct {
	Step string `json:"step"`
	Text string `json:"text"`
}

// Verdicts of an Explanation.
const (
	verdictPass = "pass"
	verdictDrop = "drop"
	verdictHost = "host"
)

// Explain says which zone, flow, forward, policy, translation, way and mirror a
// packet would meet.
func (g *Gateway) Explain(q Query) (*Explanation, error) {
	e := &explainer{g: g, out: &Explanation{Mirrors: []ExplanationMirror{}, Steps: []ExplanationStep{}}}
	if err := e.read(q); err != nil {
		return nil, err
	}
	err := g.ns.do(func() error {
		defer e.close()
		if err := e.openMaps(); err != nil {
			return err
		}
		if err := e.explain(q.From); err != nil {
			return err
		}
		e.forwarding()
		return nil
	})
	if err != nil {
		return nil, err
	}
	e.step("verdict", "%s: %s", e.out.Verdict, e.out.Why)
	return e.out, nil
}

// read checks the question.
func (e *explainer) read(q Query) error {
	q.Src, q.Dst = q.Src.Unmap(), q.Dst.Unmap()
	switch {
	case !q.Src.IsValid() || !q.Dst.IsValid():
		return errors.New("explain: give the addresses of both ends")
	case q.Src.Is4() != q.Dst.Is4():
		return fmt.Errorf("explain: %s and %s are not of one IP version", q.Src, q.Dst)
	case q.Src.Zone() != "" || q.Dst.Zone() != "":
		return errors.New("explain: write addresses without %INTERFACE; where the packet comes in is told by its zone")
	case q.Dst.IsMulticast() || q.Dst.IsUnspecified() || q.Dst.IsLoopback() || q.Dst.IsLinkLocalUnicast():
		return fmt.Errorf("explain: packets to %s are never routed", q.Dst)
	}
	proto, ok := flowProto(q.Proto)
	if !ok {
		return fmt.Errorf("explain: unknown protocol %q: it is tcp, udp, icmp, icmpv6, another's name, or a number up to 255", q.Proto)
	}
	switch ports := protoHasPorts(proto); {
	case ports && q.Port == 0:
		return fmt.Errorf("explain: %s needs the port that is asked for", q.Proto)
	case !ports && q.Port != 0:
		return fmt.Errorf("explain: %s has no ports", q.Proto)
	}
	e.packet = endpoints{src: q.Src, dst: q.Dst, sport: q.Sport, dport: q.Port, proto: proto}
	e.out.Proto = flowProtoName(proto)
	e.out.Src, e.out.Dst = endpointText(q.Src.As16(), bigEndian(q.Sport)), endpointText(q.Dst.As16(), bigEndian(q.Port))
	return nil
}

// explainer follows one packet.
type explainer struct {
	g      *Gateway
	out    *Explanation
	packet endpoints // as it is at the step that is looked at
	in, to *memberRecord
	topo   *topology
	names  flowNames
	rules  kernelRules
	open   []*ebpf.Map
}

// kernelRules are the maps of the generation in force.
type kernelRules struct{ rules, sets, pools, members, ours *ebpf.Map }

func (k kernelRules) rule(key tapgateTgRuleKey) (*tapgateTgRule, error) {
	return lookup[tapgateTgRule](k.rules, key)
}

func (k kernelRules) set(number uint32) (*tapgateTgPolicySet, error) {
	return lookup[tapgateTgPolicySet](k.sets, number)
}

func (k kernelRules) our(a netip.Addr) (*tapgateTgOurAddr, error) {
	return lookup[tapgateTgOurAddr](k.ours, tapgateTgOursKey{Addr: a.As16()})
}

// lookup gives nil where a map has nothing.
func lookup[V any](m *ebpf.Map, key any) (*V, error) {
	var v V
	switch err := m.Lookup(key, &v); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look into the maps in force: %w", err)
	}
	return &v, nil
}

func (e *explainer) openMaps() (err error) {
	for name, m := range map[string]**ebpf.Map{
		tapgateMapTgRules: &e.rules.rules, tapgateMapTgSets: &e.rules.sets, tapgateMapTgPools: &e.rules.pools, tapgateMapTgMembers: &e.rules.members,
	} {
		if err := e.g.maps[name].Lookup(e.g.slot, m); err != nil {
			return fmt.Errorf("open the maps in force: %w", err)
		}
		e.open = append(e.open, *m)
	}
	e.rules.ours = e.g.maps[tapgateMapTgOurs]
	e.names = e.g.flowNames()
	e.topo, err = readTopology()
	return err
}

func (e *explainer) close() {
	for _, m := range e.open {
		m.Close()
	}
}

func (e *explainer) step(name, format string, args ...any) {
	e.out.Steps = append(e.out.Steps, ExplanationStep{Step: name, Text: fmt.Sprintf(format, args...)})
}

// end says what becomes of the packet.
func (e *explainer) end(verdict, reason, format string, args ...any) {
	e.out.Verdict, e.out.Reason, e.out.Why = verdict, reason, fmt.Sprintf(format, args...)
}

// endFor is end for a reason that status counts.
func (e *explainer) endFor(reason tapgateTgReason, format string, args ...any) {
	verdict, name := verdictPass, reasonNames()[reason]
	switch {
	case reason == tapgateTgReasonTG_PASS_TO_HOST:
		verdict = verdictHost
	case strings.HasPrefix(name, "drop_"):
		verdict = verdictDrop
	}
	e.end(verdict, name, format, args...)
}

func endOf(m *memberRecord) ExplanationEnd {
	return ExplanationEnd{Zone: m.Zone, Role: m.Role, Interface: m.Interface}
}

func (e *explainer) memberAt(ifindex int) *memberRecord {
	i := slices.IndexFunc(e.g.active.Members, func(m memberRecord) bool { return m.Ifindex == ifindex })
	if i < 0 {
		return nil
	}
	return &e.g.active.Members[i]
}

func (e *explainer) zoneNumber(name string) uint8 {
	for _, z := range e.g.active.Zones {
		if z.Name == name && !z.Gone {
			return z.Number
		}
	}
	return 0
}

func (e *explainer) interfaceName(ifindex int) string {
	if l := e.topo.byIndex[ifindex]; l != nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("interface %d", ifindex)
}

// copied notes the mirrors of an interface, but for those that have the packet already.
func (e *explainer) copied(m *memberRecord, direction string, without uint64) (mirrors uint64, err error) {
	entry, err := lookup[tapgateTgMember](e.rules.members, uint32(m.Ifindex))
	if entry == nil || err != nil {
		return 0, err
	}
	for _, r := range e.g.active.Mirrors {
		if bit := uint64(1) << r.Number; entry.Mirrors&bit == 0 || without&bit != 0 {
			continue
		}
		c := ExplanationMirror{Name: r.Name, Interface: m.Interface, Direction: direction, Targets: []string{}}
		for _, t := range r.Targets {
			c.Targets = append(c.Targets, t.Target)
		}
		e.out.Mirrors = append(e.out.Mirrors, c)
		e.step("mirror", "%s copies it at %s of %s, as %s > %s", r.Name, direction, m.Interface,
			endpointText(e.packet.src.As16(), bigEndian(e.packet.sport)), endpointText(e.packet.dst.As16(), bigEndian(e.packet.dport)))
	}
	return entry.Mirrors, nil
}
