package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// changing are the commands that alter the gateway. Each run of one leaves a record of
// who did what: in systemd's journal, else in the syslog.
var changing = map[string]bool{
	"apply": true, "attach": true, "detach": true, "confirm": true, "rollback": true, "upgrade": true,
	"mirror add": true, "mirror del": true, "forward add": true, "forward del": true,
	"masquerade add": true, "masquerade del": true, "flows flush": true, "config save": true,
}

// auditID marks the records of changes in the journal: journalctl MESSAGE_ID=...
const auditID = "860b38c5786346e0934f307856845dd0"

// auditLimit is how many bytes of changes, and of warnings, a record holds.
const auditLimit = 32 << 10

// auditRecord is a change that was made, or that failed.
type auditRecord struct {
	command           string // as "mirror add"
	line              string // the whole command line
	netns             string // "" is that of the process
	who               caller
	err               error
	changes, warnings []string
	serial            uint64 // of the generation that it made; 0 if it made none
}

// caller is who ran a command, as far as the kernel and the environment tell.
type caller struct {
	uid      int
	loginUID string // "" if nobody logged in
	sudoUser string
	tty      string
	sshPeer  string
}

// audit records the run of a command that changes something.
func (e *env) audit(cmd *cobra.Command, err error) {
	name := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
	if e.auditLog == nil || !changing[name] || isDryRun(cmd) {
		return
	}
	r := auditRecord{command: name, line: commandLine(e.args), who: whoCalls(), err: err}
	if f := cmd.Flags().Lookup("netns"); f != nil {
		r.netns = f.Value.String()
	}
	r.changes, r.warnings, r.serial = e.did.Changes, e.did.Warnings, e.did.Serial
	e.auditLog(r)
}

// auditAgent records what the agent has changed by itself, or what kept it from that.
func (e *env) auditAgent(opt loader.Options, did *loader.Result, err error) {
	if e.auditLog == nil {
		return
	}
	if did == nil {
		did = &loader.Result{}
	}
	e.auditLog(auditRecord{
		command: "agent", line: commandLine(e.args), netns: opt.Netns, who: whoCalls(),
		changes: did.Changes, warnings: did.Warnings, serial: did.Serial, err: err,
	})
}

// noteResult keeps what a command has done for its record.
func (e *env) noteResult(r *loader.Result) {
	e.did.Changes = append(e.did.Changes, r.Changes...)
	e.did.Warnings = append(e.did.Warnings, r.Warnings...)
	e.did.Serial = max(e.did.Serial, r.Serial)
}

func isDryRun(cmd *cobra.Command) bool {
	f := cmd.Flags().Lookup("dry-run")
	return f != nil && f.Value.String() == "true"
}

// commandLine is what was typed, quoted where that is needed to read it.
func commandLine(args []string) string {
	words := []string{"tapgate"}
	for _, a := range args {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == '"' || r == '\'' || r >= 0x7f }) {
			a = strconv.Quote(a)
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

func whoCalls() caller {
	c := caller{uid: os.Getuid(), sudoUser: os.Getenv("SUDO_USER"), sshPeer: loader.SSHPeer()}
	const nobody = "4294967295"
	if text, err := os.ReadFile("/proc/self/loginuid"); err == nil && string(text) != nobody {
		c.loginUID = strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/self/stat"); err == nil {
		c.tty = ttyOf(string(text))
	}
	return c
}

// ttyOf is the controlling terminal that a /proc/PID/stat names, as "pts/3", or "".
func ttyOf(stat string) string {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 5 {
		return ""
	}
	nr, err := strconv.Atoi(fields[4])
	if err != nil || nr == 0 {
		return ""
	}
	switch major, minor := nr>>8&0xfff, nr&0xff|nr>>12&0xfff00; {
	case major == 136: // UNIX98_PTY_SLAVE_MAJOR of linux/major.h
		return fmt.Sprintf("pts/%d", minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	default:
		return fmt.Sprintf("%d:%d", major, minor)
	}
}

// facts are what a record says beside its text, in order, without what is not known.
func (r *auditRecord) facts() (pairs [][2]string) {
	add := func(name, value string) {
		if value != "" {
			pairs = append(pairs, [2]string{name, value})
		}
	}
	add("COMMAND", r.command)
	add("COMMAND_LINE", r.line)
	result := "done"
	if r.err != nil {
		result = "failed"
	}
	add("RESULT", result)
	add("EXIT_CODE", strconv.Itoa(exitCode(r.err)))
	add("ERROR", limited(errorLines(r.err)))
	if r.serial > 0 {
		add("SERIAL", strconv.FormatUint(r.serial, 10))
	}
	add("NETNS", r.netns)
	add("UID", strconv.Itoa(r.who.uid))
	add("LOGIN_UID", r.who.loginUID)
	add("SUDO_USER", r.who.sudoUser)
	add("TTY", r.who.tty)
	add("SSH_PEER", r.who.sshPeer)
	add("CHANGES", limited(r.changes))
	add("WARNINGS", limited(r.warnings))
	return pairs
}

// text is the record in one line, for people.
func (r *auditRecord) text() string {
	who := fmt.Sprintf("uid %d", r.who.uid)
	for _, more := range [][2]string{{"login uid ", r.who.loginUID}, {"sudo from ", r.who.sudoUser}, {"on ", r.who.tty}, {"by SSH from ", r.who.sshPeer}} {
		if more[1] != "" {
			who += ", " + more[0] + more[1]
		}
	}
	switch {
	case r.err != nil:
		return fmt.Sprintf("%s failed (%s): %s", r.command, who, strings.Join(errorLines(r.err), "; "))
	case len(r.changes) == 0:
		return fmt.Sprintf("%s changed nothing (%s)", r.command, who)
	}
	return fmt.Sprintf("%s: %s (%s): %s", r.command, counted(len(r.changes), "change"), who, strings.Join(first3(r.changes), "; "))
}

// first3 keeps the text short; all changes stand in their field.
func first3(lines []string) []string {
	if len(lines) <= 3 {
		return lines
	}
	return append(append([]string{}, lines[:3]...), fmt.Sprintf("and %d more", len(lines)-3))
}

// limited joins lines as far as a record holds them.
func limited(lines []string) string {
	var b strings.Builder
	for i, l := range lines {
		if b.Len()+len(l) > auditLimit {
			fmt.Fprintf(&b, "and %d more\n", len(lines)-i)
			break
		}
		b.WriteString(l + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
