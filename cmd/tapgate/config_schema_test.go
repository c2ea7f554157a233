package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"tapgate/loader"
)

func schemaJSON(t *testing.T) map[string]any {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(configSchema))
	if err != nil {
		t.Fatal(err)
	}
	return doc.(map[string]any)
}

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("urn:tapgate:config", schemaJSON(t)); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("urn:tapgate:config")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// schemaKeys are the keys that the schema knows: by its definitions, and "" for those
// of the file itself.
func schemaKeys(t *testing.T) map[string][]string {
	t.Helper()
	doc := schemaJSON(t)
	keys := map[string][]string{}
	add := func(name string, def any) {
		properties, _ := def.(map[string]any)["properties"].(map[string]any)
		for key := range properties {
			keys[name] = append(keys[name], key)
		}
		slices.Sort(keys[name])
	}
	add("", doc)
	for name, def := range doc["$defs"].(map[string]any) {
		add(name, def)
	}
	return keys
}

// parserKeys are the keys that the parser knows, by the method that reads them: what
// its switches on a key name.
func parserKeys(t *testing.T) map[string][]string {
	t.Helper()
	keys := map[string][]string{}
	for _, file := range []string{"config.go", "config_nat.go"} {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := f.Name.Name
			if name == "parseConfig" {
				name = ""
			}
			ast.Inspect(f, func(n ast.Node) bool {
				s, ok := n.(*ast.SwitchStmt)
				if !ok {
					return true
				}
				if tag, ok := s.Tag.(*ast.SelectorExpr); !ok || tag.Sel.Name != "key" {
					return true
				}
				for _, c := range s.Body.List {
					for _, e := range c.(*ast.CaseClause).List {
						text, err := strconv.Unquote(e.(*ast.BasicLit).Value)
						if err != nil {
							t.Fatal(err)
						}
						keys[name] = append(keys[name], text)
					}
				}
				return true
			})
			slices.Sort(keys[name])
		}
	}
	for _, k := range timeoutKeys(&loader.Timeouts{}) {
		keys["timeouts"] = append(keys["timeouts"], k.name)
	}
	slices.Sort(keys["timeouts"])
	// The parser names these to say that it has not got them yet.
	keys["target"] = slices.DeleteFunc(keys["target"], func(k string) bool { return slices.Contains([]string{"vxlan", "geneve", "gre", "erspan"}, k) })
	return keys
}

func TestSchemaKnowsTheParsersKeys(t *testing.T) {
	schema, parser := schemaKeys(t), parserKeys(t)
	n := 0
	for name, keys := range parser {
		n += len(keys)
		if !slices.Equal(keys, schema[name]) {
			t.Errorf("%q: the parser knows %q, the schema %q", name, keys, schema[name])
		}
	}
	for name, keys := range schema {
		if len(keys) > 0 && len(parser[name]) == 0 {
			t.Errorf("%q: nothing reads it", name)
		}
	}
	if n < 50 {
		t.Errorf("only %d keys were found in the parser", n)
	}
}

// decoded is a file as an editor's YAML reader has it.
func decoded(text string) (v any, err error) {
	err = yaml.Unmarshal([]byte(strings.TrimPrefix(text, "\ufeff")), &v)
	return v, err
}

// fenced are the blocks of a language in a page.
func fenced(t *testing.T, file, language string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(text), "```"+language+"\n")
	for _, p := range parts[1:] {
		block, _, _ := strings.Cut(p, "```")
		blocks = append(blocks, block)
	}
	return blocks
}

func TestSchemaTakesWhatIsValid(t *testing.T) {
	schema := compiledSchema(t)
	valid := map[string]string{
		"example": exampleConfig, "nat": natConfig, "small": smallConfig,
		"one port, one source": "zones: {a: {role: external, interfaces: [10, 1e3]}, internal: {interfaces: [eth1], prefixes: 10.0.0.0/8}}\n" +
			"nat: {masquerade: [{from: internal, to: a, ports: 1024-2047, sources: 10.0.0.0/8}], exclude: 192.0.2.1, forwards: }\nmirrors:\npolicies:\n",
		"numbers as text": "zones: {external: {interfaces: [eth0]}}\nnat: {max_flows: '1000', forwards: [{name: a, in: external, proto: udp, port: '53', to: '10.0.0.1:53'}]}\n",
	}
	for i, block := range fenced(t, "../../README.md", "yaml") {
		valid["README "+strconv.Itoa(i)] = block
	}
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, f := range append(files, "../../scripts/package/tapgate.yaml") {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		valid[f] = string(text)
	}
	if len(valid) < 11 {
		t.Errorf("only %d examples were found", len(valid))
	}
	for name, text := range valid {
		d, err := parseConfig(name, []byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for what, text := range map[string]string{"": text, ", written again": formatConfig(d.Config)} {
			v, err := decoded(text)
			if err == nil {
				err = schema.Validate(v)
			}
			if err != nil {
				t.Errorf("%s%s: %v\n%s", name, what, err, text)
			}
		}
	}
}

// natMistakes are the wrong texts of a golden file, in which what is said of each
// stands behind it.
func natMistakes(t *testing.T) (texts []string) {
	t.Helper()
	all, err := os.ReadFile("testdata/config-nat-errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for line := range strings.Lines(string(all)) {
		if !strings.HasPrefix(line, "  f:") {
			text += line
			continue
		}
		if strings.TrimSpace(text) != "" {
			texts = append(texts, strings.TrimLeft(text, "\n"))
		}
		text = ""
	}
	return texts
}

// onlyParser are mistakes that no schema can tell: relations of values, bits of
// networks, and what is fine as YAML.
var onlyParser = []string{
	"bits behind its length", "give both ranges the same size", "ends before it begins", "write networks of IPv4 as IPv4",
	"a second document", "<<", "must be above zero", "larger than",
}

func TestSchemaRefusesWhatIsWrong(t *testing.T) {
	schema := compiledSchema(t)
	var texts []string
	for _, m := range configMistakes() {
		texts = append(texts, m.text)
	}
	texts = append(texts, natMistakes(t)...)
	refused := 0
	for _, text := range texts {
		v, err := decoded(text)
		if err != nil {
			continue // no YAML
		}
		_, err = parseConfig("f", []byte(text))
		if err == nil {
			t.Fatalf("not wrong:\n%s", text)
		}
		if slices.ContainsFunc(onlyParser, func(s string) bool { return strings.Contains(err.Error(), s) }) {
			continue
		}
		// A part of a file: not for what it lacks.
		if m, ok := v.(map[string]any); ok && m["zones"] == nil {
			m["zones"] = map[string]any{"internal": map[string]any{"interfaces": []any{"eth3"}}}
		}
		if schema.Validate(v) == nil {
			t.Errorf("is taken by the schema, though %v:\n%s", err, text)
		}
		refused++
	}
	if refused < 70 {
		t.Errorf("only %d wrong files were tried", refused)
	}
}

func TestSchemaCommand(t *testing.T) {
	got := call(&fake{}, "", "config", "schema")
	if got != (outcome{stdout: configSchema}) {
		t.Errorf("%+v", got)
	}
}
