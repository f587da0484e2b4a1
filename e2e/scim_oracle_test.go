package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/e2e/servers"
	"accessbroker.internal/scim"
)

// A scimCase is a question to both implementations.
type scimCase struct {
	Resource   string         `json:"-"`
	Document   map[string]any `json:"document"`
	Patch      map[string]any `json:"patch,omitempty"`
	Expression *string        `json:"expression,omitempty"`
}

// A scimAnswer is the answer of the oracle.
type scimAnswer struct {
	Matches  *bool          `json:"matches"`
	Document map[string]any `json:"document"`
	Error    string         `json:"error"`
}

// The broker's filters and PATCHes agree with scim2-parse-filter and scim-patch, two
// implementations that others maintain. SCIM_SEED repeats a run.
func TestSCIMAgreesWithOtherImplementations(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SCIM_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("SCIM_SEED=%d", seed)
	g := scimGenerator{rand.New(rand.NewPCG(seed, 1))}
	var cases []scimCase
	for range 10_000 {
		expression := g.filter(3)
		cases = append(cases, scimCase{Resource: "User", Document: g.user(), Expression: &expression})
	}
	for range 8_000 {
		u := g.user()
		cases = append(cases, scimCase{Resource: "User", Document: u, Patch: g.patch(u)})
	}
	for range 2_000 {
		group, patch := g.group()
		cases = append(cases, scimCase{Resource: "Group", Document: group, Patch: patch})
	}
	answers := askSCIMOracle(t, cases)
	matched, changed, refused, wrong := 0, 0, 0, 0
	for i, c := range cases {
		want := answers[i]
		if err := c.compare(t, want); err != nil {
			if wrong++; wrong <= 20 {
				text, _ := json.Marshal(c)
				t.Errorf("case %d: %v\n%s", i, err, text)
			}
		}
		switch {
		case want.Matches != nil && *want.Matches:
			matched++
		case want.Document != nil:
			changed++
		case want.Error != "":
			refused++
		}
	}
	t.Logf("%d filters match, %d PATCHes succeed, %d are refused, %d answers differ", matched, changed, refused, wrong)
	if matched < 1000 || changed < 5000 || refused < 100 {
		t.Errorf("the cases are too alike: %d filters match, %d PATCHes succeed, %d are refused", matched, changed, refused)
	}
}

// compare returns an error if the broker's answer differs from the oracle's.
func (c *scimCase) compare(t *testing.T, want scimAnswer) error {
	t.Helper()
	document, err := json.Marshal(c.Document)
	if err != nil {
		t.Fatal(err)
	}
	if c.Expression != nil {
		got, err := scim.Match(c.Resource, *c.Expression, document)
		if err != nil || want.Matches == nil || got != *want.Matches {
			return fmt.Errorf("got %v, %v, want %+v", got, err, want)
		}
		return nil
	}
	patch, err := json.Marshal(c.Patch)
	if err != nil {
		t.Fatal(err)
	}
	got, err := scim.Patch(c.Resource, document, patch)
	switch {
	case err != nil && want.Error != "":
		return nil
	case err == nil && c.removesValues() && nothingSelected.MatchString(want.Error):
		return nil
	case err != nil || want.Error != "":
		return fmt.Errorf("got error %v, want %q", err, want.Error)
	}
	var after any
	if err := json.Unmarshal(got, &after); err != nil {
		t.Fatal(err)
	}
	a, b := scimPlain(after), scimPlain(any(want.Document))
	if c.Resource == "Group" {
		a, b = sortMembers(a), sortMembers(b)
	}
	if !reflect.DeepEqual(a, b) {
		return fmt.Errorf("got %v, want %v", a, b)
	}
	return nil
}

// nothingSelected are the errors of scim-patch for a remove that finds nothing. RFC 7644,
// section 3.5.2.2, has no such error, so the broker changes nothing and succeeds.
var nothingSelected = regexp.MustCompile("Impossible to search on a mono valued attribute|A matching array entry was not found|Remove with patch value is supported only for array properties")

// removesValues reports whether an operation removes some values of an attribute.
func (c *scimCase) removesValues() bool {
	ops, _ := c.Patch["Operations"].([]any)
	return slices.ContainsFunc(ops, func(item any) bool {
		o := item.(map[string]any)
		path, _ := o["path"].(string)
		return strings.EqualFold(o["op"].(string), "remove") && (strings.Contains(path, "[") || o["value"] != nil)
	})
}

// sortMembers sorts the members of a group, which have no order.
func sortMembers(v any) any {
	group := v.(map[string]any)
	list, _ := group["members"].([]any)
	slices.SortFunc(list, func(a, b any) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return group
}

// askSCIMOracle runs the cases in Node.
func askSCIMOracle(t *testing.T, cases []scimCase) (answers []scimAnswer) {
	t.Helper()
	modules, err := servers.Modules("scim")
	if err != nil {
		t.Fatal(err)
	}
	var in, out, errs bytes.Buffer
	enc := json.NewEncoder(&in)
	for _, c := range cases {
		if err := enc.Encode(c); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), installed(t, "node"), filepath.Join("clients", "scim", "oracle.mjs"))
	cmd.Env = append(os.Environ(), "SCIM_MODULES="+modules)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("running the oracle: %v\n%s", err, errs.Bytes())
	}
	lines := bufio.NewScanner(&out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var a scimAnswer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	if len(answers) != len(cases) {
		t.Fatalf("the oracle answered %d of %d cases: %v\n%s", len(answers), len(cases), lines.Err(), errs.Bytes())
	}
	return answers
}
