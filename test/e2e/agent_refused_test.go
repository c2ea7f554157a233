package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The agent logs that new flows were refused since there was no place for them, what it
// was that was missing, and what helps: once a minute, and only when there were any.
func TestAgentLogsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		reason, nat, ports string
		room               uint16 // flows that there are places for
		same               bool   // the host that has them asks for more
		says               []string
	}{
		{reason: "full", nat: "max_flows: 16\n  max_flows_per_host: 16", room: 16,
			says: []string{"the flow table has no room", "flows=16 max_flows=16 unanswered=0 max_unanswered=8", "max_flows under nat makes it larger"}},
		{reason: "host", nat: "max_flows_per_host: 16", room: 16, same: true,
			says: []string{"an inside host has used up its share", "max_flows_per_host=16", "max_flows_per_host under nat is the share"}},
		{reason: "ports", nat: "", ports: `, ports: ["61000-61003"]`, room: 4,
			says: []string{"no outside port is left", "more addresses or ports for the masquerade rule"}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			t.Parallel()
			g := newGate(t, gateZones+"\nnat:\n  "+c.nat+"\n  masquerade:\n    - {from: internal, to: external"+c.ports+"}\n")
			in, out := g.station(atInside, 0), g.station(atOutside, 0)
			for port := range c.room {
				g.answerUDP(out, 9000, g.mapUDP(in, 5000+port, out, 9000, false), in, 5000+port)
			}
			more, next := in, uint16(6000)
			if !c.same {
				more = g.station(atInside, 1)
			}
			ask := func(n uint64) {
				t.Helper()
				before := g.status().Gateway.Refused[c.reason]
				for range n {
					more.udp(next, out.at(false, 9000), "beyond")
					next++
				}
				g.fence(more)
				if got := g.status().Gateway.Refused[c.reason] - before; got != n {
					t.Errorf("%d of %d were refused as %s", got, n, c.reason)
				}
			}
			ask(3)
			a := g.agent(nil)
			client := g.client()
			// look waits until the agent has looked at what is there now.
			look := func() {
				t.Helper()
				for range 2 { // one may have begun before
					since := time.Now()
					a.signal(syscall.SIGHUP)
					retry(t, func() error {
						_, rest, _ := strings.Cut(string(get(t, client, agentMetrics)), "\ntapgate_agent_last_look_timestamp_seconds ")
						number, _, _ := strings.Cut(rest, "\n")
						last, err := strconv.ParseFloat(number, 64)
						if err == nil && last < float64(since.UnixMicro())/1e6 {
							err = fmt.Errorf("it has looked at %s", number)
						}
						return err
					})
				}
			}
			look()
			if strings.Contains(a.log.String(), "new flows are refused") {
				t.Errorf("nothing was refused since it runs:\n%s", a.log)
			}
			ask(5)
			a.says("reason=" + c.reason)
			ask(7)
			look()
			var told []time.Time
			for _, m := range regexp.MustCompile(`(?m)^time=(\S+) level=WARN msg="new flows are refused: .*$`).FindAllStringSubmatch(a.log.String(), -1) {
				at, err := time.Parse(time.RFC3339, m[1])
				if err != nil {
					t.Fatal(err)
				}
				for _, text := range append(c.says, "reason="+c.reason) {
					if !strings.Contains(m[0], text) {
						t.Errorf("%q is not in %s", text, m[0])
					}
				}
				// A second line is right only where this machine took a minute to come here.
				if n := len(told); n > 0 && at.Sub(told[n-1]) < 59*time.Second {
					t.Errorf("it says so again %v later", at.Sub(told[n-1]))
				}
				told = append(told, at)
			}
		})
	}
}
