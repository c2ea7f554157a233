package loader

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// statusForwarding tells of what keeps packets from being forwarded as status says.
func (g *Gateway) statusForwarding(gs *GatewayStatus) (problems []string) {
	r := g.active.Gateway
	now, tracking := g.forwardingNow()
	topo, err := readTopology()
	if err == nil {
		if why := topo.enslaved(g.active.ingresses()); why != "" {
			problems = append(problems, why+", which the kernel names as where its packets come from: all that is routed there is dropped; take it out (ip link set dev DEV nomaster)")
		}
	}
	if gs.Followed {
		return problems // the agent is about to see the rest too
	}
	switch {
	case r.Forwarding.fast() && !now.fast():
		problems = append(problems, fmt.Sprintf("forwarding is fast, and that does not go with this machine any more: %s; "+
			"\"tapgate agent\" would change to kernel: start it, or apply again", now.Reason))
	case r.Forwarding.fast():
		for _, s := range tracking {
			if value, err := s.read(); err == nil && value != s.Value && !slices.ContainsFunc(r.Sysctls, s.same) {
				problems = append(problems, fmt.Sprintf("%s is %s, since connections are tracked only now, and %s: apply again", s, value, s.need()))
			}
		}
	case r.Forwarding.byItself() && now != r.Forwarding:
		gs.Forwarding.Reason += "; that is so no longer, apply again"
	}
	return problems
}

// forwarding tells which way the packets of the flow take.
func (e *explainer) forwarding() {
	r, x := e.g.active.Gateway, &ExplanationForwarding{}
	switch {
	case r == nil || e.out.Verdict != verdictPass || e.out.Reason == reasonNames()[tapgateTgReasonTG_PASS_NOT_MEMBER]:
		return
	case e.out.Reason == reasonNames()[tapgateTgReasonTG_PASS_ALLOWED] && e.out.Flow == nil:
		x.Why = "there is no flow: the host's stack forwards each packet"
	case e.out.Forward != nil && e.out.Forward.Hairpin || e.out.Reason == reasonNames()[tapgateTgReasonTG_PASS_HAIRPIN]:
		x.Why = "it is turned round where it came in"
	case !r.Forwarding.fast():
		x.Why = r.Forwarding.Reason
	case e.packet.proto != protoTCP && e.packet.proto != unix.IPPROTO_UDP:
		x.Why = "only TCP and UDP take the fast path"
	case e.out.Flow != nil && !e.out.Flow.Fast:
		x.Why = "its last packets took the host's stack: the first of a flow do, and those that are unusual"
	case e.out.Flow != nil:
		x.Fast, x.Why = true, "its last packets passed by the host's stack"
	default:
		x.Fast, x.Why = true, "once both sides have spoken, packets pass by the host's stack, but for one in ten seconds and those that are unusual"
	}
	e.out.Forwarding = x
	mode := ForwardingKernel
	if x.Fast {
		mode = ForwardingFast
	}
	e.step("forwarding", "%s: %s", mode, x.Why)
}
