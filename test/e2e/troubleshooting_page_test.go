package e2e

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// The troubleshooting page, as it is read here: "##" begins a symptom, "###" one of
// its causes, and a block of ```console in a cause is typed and answered:
//
//	$ tapgate status           at the gateway
//	server$ ping -c 1 ...      at a host: server, outside, sensor or mgmt
//	interface eth2 is down     what the answer must say, line by line in this order
//	flows 5 of ... with ...    "..." is for anything
//
// A command that the page gives no answer to has to succeed.
const troubleshootingPage = "../../cmd/tapgate/manual/troubleshooting.md"

// pageCause is a cause of a symptom.
type pageCause struct {
	symptom, name string
	commands      []pageCommand
}

// pageCommand is what the reader types, and what he then sees.
type pageCommand struct {
	line  int    // of the page
	host  string // "" is the gateway
	text  string
	wants []string
}

var (
	pagePrompt = regexp.MustCompile(`^([a-z]*)\$ (.*)$`)
	pageSpaces = regexp.MustCompile(`[ \t]+`)
)

// readPage reads the page's causes, in their order, and its symptoms.
func readPage(t *testing.T, file string) (causes []*pageCause, symptoms []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var cause *pageCause
	fence := ""
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		n++
		prompt := pagePrompt.FindStringSubmatch(line)
		switch {
		case strings.HasPrefix(line, "```"):
			if fence == "" {
				fence = line
			} else {
				fence = ""
			}
		case fence == "" && strings.HasPrefix(line, "## "):
			symptoms, cause = append(symptoms, line[3:]), nil
		case fence == "" && strings.HasPrefix(line, "### "):
			if len(symptoms) == 0 {
				t.Fatalf("%s:%d: a cause of no symptom", file, n)
			}
			cause = &pageCause{symptom: symptoms[len(symptoms)-1], name: line[4:]}
			causes = append(causes, cause)
		case fence != "```console":
		case cause == nil:
			t.Fatalf("%s:%d: a command that belongs to no cause", file, n)
		case prompt != nil:
			cause.commands = append(cause.commands, pageCommand{line: n, host: prompt[1], text: prompt[2]})
		case len(cause.commands) == 0:
			t.Fatalf("%s:%d: an answer to no command", file, n)
		default:
			c := &cause.commands[len(cause.commands)-1]
			if line = normal(line); line != "" && line != "..." {
				c.wants = append(c.wants, line)
			}
		}
	}
	return causes, symptoms
}

func normal(s string) string { return strings.TrimSpace(pageSpaces.ReplaceAllString(s, " ")) }

// unanswered is the first line of the page's answer that is not in the output, at its
// place; "" if all are.
func (c pageCommand) unanswered(output string) string {
	lines := strings.Split(output, "\n")
next:
	for _, want := range c.wants {
		for i, line := range lines {
			if holds(normal(line), want) {
				lines = lines[i+1:]
				continue next
			}
		}
		return want
	}
	return ""
}

// holds says whether the parts of want stand in the line, in their order.
func holds(line, want string) bool {
	for part := range strings.SplitSeq(want, "...") {
		i := strings.Index(line, strings.TrimSpace(part))
		if i < 0 {
			return false
		}
		line = line[i+len(strings.TrimSpace(part)):]
	}
	return true
}

func (c pageCommand) String() string {
	return fmt.Sprintf("%s:%d: %s$ %s", troubleshootingPage, c.line, c.host, c.text)
}
