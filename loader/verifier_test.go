package loader

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
)

var (
	verifierProcessed = regexp.MustCompile(`processed (\d+) insns`)
	verifierStack     = regexp.MustCompile(`stack depth ([0-9+]+)`)
)

// What the kernel allows a program: instructions that the verifier looks at, and
// stack of a chain of calls.
const (
	verifierInstructions = 1_000_000
	verifierStackLimit   = 512
)

// TestVerifierBudget tells what each program takes of what this kernel allows,
// as rows of the table in bpf/README.md, and wants a fifth of the instructions
// left for kernels to come.
func TestVerifierBudget(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to load programs")
	}
	spec, err := programSpecs(0)
	if err != nil {
		t.Fatal(err)
	}
	sizeFlowMaps(spec, tableMaking{flows: 1})
	_ = rlimit.RemoveMemlock()
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	defer coll.Close()
	for _, name := range pinnedPrograms {
		p := coll.Programs[name]
		m := verifierProcessed.FindStringSubmatch(p.VerifierLog)
		s := verifierStack.FindStringSubmatch(p.VerifierLog)
		if m == nil || s == nil {
			t.Errorf("%s: the verifier tells no figures:\n%s", name, p.VerifierLog)
			continue
		}
		var depths []int
		for text := range strings.SplitSeq(s[1], "+") {
			depth, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			depths = append(depths, depth)
		}
		processed, _ := strconv.Atoi(m[1])
		stack, chain := deepest(t, spec.Programs[name].Instructions, depths)
		t.Logf("| `%s` | %d | %d | %d | %s |", name, len(spec.Programs[name].Instructions), processed, stack, strings.Join(chain, " > "))
		if processed > verifierInstructions*4/5 {
			t.Errorf("%s: the verifier looks at %d instructions, of %d that it may", name, processed, verifierInstructions)
		}
		if stack > verifierStackLimit {
			t.Errorf("%s: %d bytes of stack in a chain of calls, of %d", name, stack, verifierStackLimit)
		}
	}
}

// deepest finds the chain of calls that takes the most stack, given what each
// function takes in the order of the code, as the kernel numbers them. A function
// takes multiples of 32 bytes, in newer kernels less.
func deepest(t *testing.T, insns asm.Instructions, depths []int) (int, []string) {
	t.Helper()
	var order []string
	calls := map[string][]string{}
	for _, ins := range insns {
		if name := ins.Symbol(); name != "" && (len(order) == 0 || ins.Symbol() != order[len(order)-1]) && isFunction(insns, name) {
			order = append(order, name)
		}
		if ins.IsFunctionCall() {
			last := order[len(order)-1]
			calls[last] = append(calls[last], ins.Reference())
		}
	}
	if len(order) != len(depths) {
		t.Fatalf("%d functions and %d depths of stack: %v", len(order), len(depths), order)
	}
	var walk func(name string) (int, []string)
	walk = func(name string) (int, []string) {
		own := (max(depths[slices.Index(order, name)], 1) + 31) / 32 * 32
		most, chain := 0, []string(nil)
		for _, next := range calls[name] {
			if n, c := walk(next); n > most {
				most, chain = n, c
			}
		}
		return own + most, append([]string{name}, chain...)
	}
	return walk(order[0])
}

// isFunction tells a function from a label: the first, or one that is called.
func isFunction(insns asm.Instructions, name string) bool {
	return insns[0].Symbol() == name || slices.ContainsFunc(insns, func(ins asm.Instruction) bool {
		return ins.IsFunctionCall() && ins.Reference() == name
	})
}
