package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// monitoring is the folder of what a user gives to Prometheus and Grafana.
const monitoring = "../../scripts/monitoring"

// metricsConfig has one of everything that has metrics.
const metricsConfig = gateZones + `
nat:
  masquerade:
    - {name: all, from: internal, to: external, ipv6: true}
  forwards:
    - {name: web, in: external, proto: tcp, port: 4000, to: "192.168.3.2:4000"}
policies:
  - {name: no-telnet, from: internal, to: external, proto: tcp, ports: [23], action: drop}
`

// documented is the table of metrics.md: "type label,label" by name.
func documented(t *testing.T) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(monitoring, "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\| ([\\w, ]*)\\|")
	for _, m := range row.FindAllStringSubmatch(string(raw), -1) {
		labels := strings.Split(strings.ReplaceAll(strings.TrimSpace(m[3]), " ", ""), ",")
		slices.Sort(labels)
		all[m[1]] = m[2] + " " + strings.Join(labels, ",")
	}
	if len(all) < 50 {
		t.Fatalf("metrics.md has only %d rows that can be read", len(all))
	}
	return all
}

// A real agent, in the namespace of a gateway with traffic, has each metric that is
// documented and no other, for everybody on the machine; promtool and a real
// Prometheus take them, and the alert rules; and each query of the dashboard works.
func TestAgentMetrics(t *testing.T) {
	t.Parallel()
	g := newGate(t, metricsConfig)
	a := g.agent(nil, "--measure-programs", "--log-flows", filepath.Join(g.Dir, "flows.json"))
	at, accepted := g.listen(g.out[0], netip.AddrPortFrom(g.out[0].Addr, 0))
	c, err := g.dial(g.in[0], netip.AddrPortFrom(g.in[0].Addr, 0), at)
	if err != nil {
		t.Fatal(err)
	}
	g.converse(c, g.take(accepted))

	client := g.client()
	text := string(get(t, client, agentMetrics))
	checkMetrics(t, text)
	for _, h := range g.in {
		if strings.Contains(text, h.Addr.String()) || strings.Contains(text, h.Addr6.String()) {
			t.Errorf("everybody on the machine reads of the inside host %s", h.Addr)
		}
	}
	nobody := g.Gateway.Command(context.Background(), "bash", "-c",
		`exec 3<>/dev/tcp/127.0.0.1/9435 && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && cat <&3`)
	nobody.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	if out, err := nobody.CombinedOutput(); err != nil || !strings.Contains(string(out), "\ntapgate_attached 1\n") {
		t.Errorf("who is not root reads: %v\n%.300s", err, out)
	}
	if body := string(get(t, client, strings.Replace(agentMetrics, "metrics", "healthz", 1))); body != "ok\n" {
		t.Errorf("/healthz: %q", body)
	}

	p := g.prometheus(client)
	for name := range documented(t) {
		// The two that come with the first flow a rule decides on and the first run.
		p.eventually("count(" + name + ")")
	}
	p.rulesWork()
	p.dashboardWorks(slices.Collect(maps.Keys(documented(t))))

	// Without a gateway there is still an agent.
	g.must("detach")
	a.says("waiting for one")
	if text := string(get(t, client, agentMetrics)); !strings.Contains(text, "\ntapgate_attached 0\n") || strings.Contains(text, "\ntapgate_flows ") {
		t.Errorf("detached:\n%s", text)
	}
	a.end()
}

func get(t *testing.T, client *http.Client, url string) []byte {
	t.Helper()
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", url, answer.Status, err, body)
	}
	return body
}

// checkMetrics has promtool look at them, and compares with the documentation.
func checkMetrics(t *testing.T, text string) {
	t.Helper()
	tool := exec.Command("promtool", "check", "metrics")
	tool.Stdin = strings.NewReader(text)
	if out, err := tool.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := documented(t)
	for name, f := range families {
		if !strings.HasPrefix(name, "tapgate_") {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
			}
			slices.Sort(labels)
			if got := strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, ","); got != want[name] {
				t.Errorf("%s is %q, documented as %q", name, got, want[name])
				break
			}
		}
	}
	for name := range want {
		if families[name] == nil {
			t.Errorf("%s is documented, and the agent has none", name)
		}
	}
}

// prometheus is a real one that reads the agent.
type prometheus struct {
	t      *testing.T
	client *http.Client
}

// prometheus starts one in the gateway's namespace, with the files that users get,
// but quicker.
func (g *gate) prometheus(client *http.Client) *prometheus {
	g.t.Helper()
	dir := g.t.TempDir()
	raw, err := os.ReadFile(filepath.Join(monitoring, "prometheus.yaml"))
	if err != nil {
		g.t.Fatal(err)
	}
	config := strings.ReplaceAll(string(raw), ": 15s", ": 1s")
	alerts, err := filepath.Abs(filepath.Join(monitoring, "alerts.yaml"))
	if err != nil {
		g.t.Fatal(err)
	}
	config = strings.Replace(config, "- alerts.yaml", "- "+alerts, 1)
	file := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := g.Gateway.Command(ctx, "prometheus", "--config.file", file, "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", "127.0.0.1:9090", "--log.level", "warn")
	var log lockedText
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		cancel() // killed: its data are of no use
		_ = cmd.Wait()
		if g.t.Failed() {
			g.t.Logf("prometheus said:\n%s", log.String())
		}
	})
	return &prometheus{g.t, client}
}

// api asks for something of its HTTP API.
func (p *prometheus) api(path string, query url.Values, data any) error {
	answer, err := p.client.Get("http://127.0.0.1:9090/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	var result struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(bufio.NewReader(answer.Body)).Decode(&result); err != nil {
		return err
	}
	if result.Status != "success" {
		return fmt.Errorf("%s: %s", query, result.Error)
	}
	return json.Unmarshal(result.Data, data)
}

// count is how many series a query gives.
func (p *prometheus) count(expr string) (int, error) {
	var data struct{ Result []json.RawMessage }
	err := p.api("query", url.Values{"query": {expr}}, &data)
	return len(data.Result), err
}

// eventually waits until a query gives something.
func (p *prometheus) eventually(expr string) {
	p.t.Helper()
	retry(p.t, func() error {
		n, err := p.count(expr)
		if err == nil && n == 0 {
			err = fmt.Errorf("%s gives nothing", expr)
		}
		return err
	})
}

// rulesWork says that every alert rule could be evaluated.
func (p *prometheus) rulesWork() {
	p.t.Helper()
	retry(p.t, func() error {
		var data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
		if err := p.api("rules", nil, &data); err != nil {
			return err
		}
		n := 0
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				n++
				if r.Health != "ok" {
					return fmt.Errorf("rule %s: %s %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if n < 10 {
			return fmt.Errorf("only %d rules", n)
		}
		return nil
	})
}

// metricName is one of ours in an expression.
var metricName = regexp.MustCompile(`\b(tapgate|process|promhttp)_[a-z_]+\b`)

// dashboardWorks asks every query of the dashboard. Those of rates need two readings.
func (p *prometheus) dashboardWorks(known []string) {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(monitoring, "dashboard.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
		Annotations struct{ List []struct{ Expr string } }
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		p.t.Fatal(err)
	}
	replace := strings.NewReplacer("$instance", ".+", "$__rate_interval", "1m", "$__interval", "1m")
	asked := 0
	ask := func(title, expr string, something bool) {
		asked++
		for _, name := range metricName.FindAllString(expr, -1) {
			if strings.HasPrefix(name, "tapgate_") && !slices.Contains(known, name) {
				p.t.Errorf("%s: there is no metric %s", title, name)
			}
		}
		expr = replace.Replace(expr)
		if strings.Contains(expr, "$") {
			p.t.Errorf("%s: %s has a variable that the test does not know", title, expr)
		}
		// What is compared with zero may well be empty.
		if something && !strings.Contains(expr, ") > 0") {
			p.eventually(expr)
		} else if _, err := p.count(expr); err != nil {
			p.t.Errorf("%s: %v", title, err)
		}
	}
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			ask(panel.Title, target.Expr, true)
		}
		if len(panel.Targets) == 0 && panel.Type != "row" {
			p.t.Errorf("panel %s has no query", panel.Title)
		}
	}
	for _, a := range board.Annotations.List {
		ask("annotation", a.Expr, false)
	}
	if asked < 20 {
		p.t.Errorf("the dashboard has only %d queries", asked)
	}
}

// Every alert rule has a test in which it comes and one in which it does not, and
// all of them pass.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}, {"check", "config", "--syntax-only", "prometheus.yaml"}} {
		tool := exec.Command("promtool", args...)
		tool.Dir = monitoring
		if out, err := tool.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	read := func(name string) string {
		raw, err := os.ReadFile(filepath.Join(monitoring, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	tests := read("alerts_test.yaml")
	names := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(read("alerts.yaml"), -1)
	for _, n := range names {
		if !strings.Contains(tests, "alertname: "+n[1]+", exp_alerts: []}") || !strings.Contains(tests, "alertname: "+n[1]+"\n        exp_alerts:\n") {
			t.Errorf("alert %s is not tested both ways", n[1])
		}
	}
	known := documented(t)
	for _, name := range metricName.FindAllString(read("alerts.yaml"), -1) {
		if strings.HasPrefix(name, "tapgate_") && known[name] == "" {
			t.Errorf("there is no metric %s", name)
		}
	}
}
