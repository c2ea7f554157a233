package loader

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// toolWait bounds what one of the host's tools may take; it is a matter of milliseconds.
const toolWait = 20 * time.Second

// toolFolders are looked into where PATH is not root's.
var toolFolders = []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"}

// findTool returns the path of a program, "" if there is none.
var findTool = func(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range toolFolders {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// hostTool runs a program in the namespace of the calling thread.
func hostTool(path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), toolWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var talk bytes.Buffer
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(talk.String()), "\n")
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(path), err, first)
	}
	return out, nil
}

// hostRuleset are the rules of a network namespace.
type hostRuleset struct {
	tables []*hostTable
	unseen []string // what could not be read, and what to do
}

// readHostRules reads the rules of the namespace of the calling thread, by the tools
// of the host: nft for nftables, iptables-save for what iptables has put there, which
// nft shows in parts only, and for the older tables of iptables.
func readHostRules() *hostRuleset {
	s := &hostRuleset{}
	s.readNft()
	s.readIptables(false)
	s.readIptables(true)
	return s
}

func (s *hostRuleset) unread(format string, args ...any) {
	s.unseen = append(s.unseen, fmt.Sprintf(format, args...))
}

func (s *hostRuleset) readNft() {
	path := findTool("nft")
	if path == "" {
		if names, _ := nftTables(); len(names) > 0 {
			s.unread("this host has nftables rules (table %s) and no nft to read them: whether they drop or translate the flows is not known; "+
				"install nftables and check again", strings.Join(names, ", "))
		}
		return
	}
	out, err := hostTool(path, "-j", "list", "ruleset")
	if err == nil && len(bytes.TrimSpace(out)) > 0 {
		_, asleep := nftTables() // nft before 1.0.7 garbles that
		s.tables, err = parseNft(out, asleep)
	}
	if err != nil {
		s.unread("the host's nftables rules could not be read, so whether they drop or translate the flows is not known: %v", err)
	}
}

// nftTables asks the kernel which tables there are that matter: "ip NAME".
func nftTables() (names, asleep []string) {
	conn, err := nftables.New()
	if err != nil {
		return nil, nil
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, nil // no nf_tables
	}
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	for _, t := range tables {
		family := families[t.Family]
		if family == "" {
			continue
		}
		names = append(names, family+" "+t.Name)
		if t.Flags&unix.NFT_TABLE_F_DORMANT != 0 {
			asleep = append(asleep, family+" "+t.Name)
		}
	}
	return names, asleep
}

// The tables that iptables has.
var iptablesTables = []string{"filter", "nat", "mangle", "raw", "security"}

// byIptables says whether a table of nft's list was made by iptables.
func (t *hostTable) byIptables() bool {
	if t.family == "inet" || !slices.Contains(iptablesTables, t.name) {
		return false
	}
	return slices.ContainsFunc(t.order, func(c *hostChain) bool { return c.hook != "" && c.name == strings.ToUpper(c.name) })
}

// readIptables reads the tables of iptables or ip6tables, of both kinds.
func (s *hostRuleset) readIptables(v6 bool) {
	command, family, list := "iptables", "ip", "ip_tables_names"
	if v6 {
		command, family, list = "ip6tables", "ip6", "ip6_tables_names"
	}
	if slices.ContainsFunc(s.tables, func(t *hostTable) bool { return t.family == family && t.byIptables() }) {
		// Without it nft's list serves, with some conditions unknown.
		if save := saveTool(command, "nft"); save != "" {
			if out, err := hostTool(save + "-save"); err == nil {
				s.replace(parseIptables(string(out), filepath.Base(save)))
			}
		}
	}
	names, err := os.ReadFile("/proc/thread-self/net/" + list)
	if err != nil || len(bytes.TrimSpace(names)) == 0 {
		return // to ask the tool would load the module
	}
	save := saveTool(command, "legacy")
	if save == "" {
		s.unread("this host has rules of %s (table %s) and no %s-save to read them: whether they drop or translate the flows is not known",
			command, strings.Join(strings.Fields(string(names)), ", "), command)
		return
	}
	out, err := hostTool(save + "-save")
	if err != nil {
		s.unread("the host's rules of %s could not be read, so whether they drop or translate the flows is not known: %v", command, err)
		return
	}
	s.tables = append(s.tables, parseIptables(string(out), filepath.Base(save))...)
}

// saveTool finds the iptables or ip6tables of a kind; with "-save" it lists its rules.
func saveTool(command, kind string) string {
	if path := findTool(command + "-save"); path != "" {
		out, err := hostTool(path, "-V")
		if is := "legacy"; err == nil {
			if bytes.Contains(out, []byte("nf_tables")) {
				is = "nft"
			}
			if is == kind {
				return strings.TrimSuffix(path, "-save")
			}
		}
	}
	return strings.TrimSuffix(findTool(command+"-"+kind+"-save"), "-save")
}

// replace puts tables in the place of those that nft listed.
func (s *hostRuleset) replace(tables []*hostTable) {
	for _, t := range tables {
		s.tables = slices.DeleteFunc(s.tables, func(o *hostTable) bool { return o.family == t.family && o.name == t.name })
	}
	s.tables = append(s.tables, tables...)
}

// nftRuleText is a rule as nft prints it, "" if it cannot be had.
func nftRuleText(r *hostRule) string {
	t := r.chain.table
	path := findTool("nft")
	if path == "" {
		return ""
	}
	out, err := hostTool(path, "-a", "list", "chain", t.family, t.name, r.chain.name)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if text, is := strings.CutSuffix(strings.TrimSpace(line), fmt.Sprintf(" # handle %d", r.handle)); is {
			return text
		}
	}
	return ""
}
