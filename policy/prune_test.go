package policy_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

const pruned = `// The file.

// Agents read.
@id("read")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read", "tickets:comment"].containsAll(context.scopes) };

// No one needs this; not even "; permit".
// It has two lines.
@id("gone")
permit (principal in Group::"jobs", action == Action::"request", resource == Entitlement::"reports"); // the end

@id("wide")
permit (principal in Group::"dba", action == Action::"request", resource == Entitlement::"tickets-api"); @id("same-line") permit (principal is Person, action == Action::"request", resource == Entitlement::"reports");
`

const prunedGroups = `# who
support: {members: [login/sue]}
dba:
  members: [login/ana, "login/ben", login/cleo]   # people
  notify: []
jobs:
  workloads:
    - spiffe://acme.test/jobs   # nightly
    - spiffe://acme.test/other
`

func prunedFolder(scenario string) fstest.MapFS {
	folder := fstest.MapFS{"a.cedar": {Data: []byte(pruned)}, "groups.yaml": {Data: []byte(prunedGroups)}}
	if scenario != "" {
		folder["a_test.yaml"] = &fstest.MapFile{Data: []byte(scenario)}
	}
	return folder
}

func prunedInputs(fsys fs.FS) policy.Inputs {
	in := inputs(fsys)
	in.Channels = nil
	return in
}

func TestProposalsTakeAway(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		changes []policy.Prune
		want    string // what the folder lacks or has then
	}{
		"a permit with its comments": {[]policy.Prune{{Policy: "gone"}}, "-// No one needs this; not even \"; permit\".\n-// It has two lines.\n-@id(\"gone\")\n-permit (principal in Group::\"jobs\", action == Action::\"request\", resource == Entitlement::\"reports\"); // the end\n-\n"},
		"the list of scopes":         {[]policy.Prune{{Policy: "read", Keep: []string{"tickets:read"}}}, "+when { [\"tickets:read\"].containsAll(context.scopes) };\n"},
		"a new condition":            {[]policy.Prune{{Policy: "wide", Keep: []string{"tickets:read"}}}, "resource == Entitlement::\"tickets-api\") when {\n+  [\"tickets:read\"].containsAll(context.scopes)\n+}; @id"},
		"a permit in a line":         {[]policy.Prune{{Policy: "same-line"}}, "+permit (principal in Group::\"dba\", action == Action::\"request\", resource == Entitlement::\"tickets-api\"); "},
		"members of a list":          {[]policy.Prune{{Group: "dba", Member: "login/ana"}, {Group: "dba", Member: "login/cleo"}}, "+  members: [\"login/ben\"]   # people\n"},
		"a workload":                 {[]policy.Prune{{Group: "jobs", Member: "spiffe://acme.test/jobs"}}, "-    - spiffe://acme.test/jobs   # nightly\n"},
		"everything":                 {[]policy.Prune{{Policy: "gone"}, {Policy: "read"}, {Policy: "wide", Keep: []string{"tickets:close"}}, {Policy: "same-line"}, {Group: "dba", Member: "login/ben"}}, "-@id(\"read\")\n"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := load(t, prunedFolder("")).Propose(t.Context(), test.changes)
			if err != nil || len(p.Left) > 0 || len(p.Files) == 0 {
				t.Fatalf("got %+v, %v", p, err)
			}
			var patch string
			for _, f := range p.Files {
				patch += f.Hunks
			}
			if !strings.Contains(patch, test.want) {
				t.Errorf("got\n%s\nwithout\n%s", patch, test.want)
			}
			applied(t, prunedFolder(""), p)
		})
	}
}

// applied applies a proposal with git, and checks that the policies load.
func applied(t *testing.T, folder fstest.MapFS, p *policy.Proposal) *policy.Engine {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("there is no git")
	}
	dir := t.TempDir()
	for name, f := range folder {
		if err := os.WriteFile(filepath.Join(dir, name), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var patch bytes.Buffer
	for _, f := range p.Files {
		fmt.Fprintf(&patch, "diff --git a/%[1]s b/%[1]s\n--- a/%[1]s\n+++ b/%[1]s\n%[2]s", f.Name, f.Hunks)
	}
	cmd := exec.CommandContext(t.Context(), git, "apply", "--whitespace=nowarn")
	cmd.Dir, cmd.Stdin = dir, &patch
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git apply: %v\n%s\n%s", err, out, patch.String())
	}
	e, err := policy.Load(prunedInputs(os.DirFS(dir)))
	if err != nil {
		t.Fatalf("the patched folder: %v\n%s", err, patch.String())
	}
	return e
}

// A change that a scenario needs is left out, and so is one that the folder cannot lose.
func TestProposalsPassTheScenarios(t *testing.T) {
	t.Parallel()
	const scenario = "scenarios:\n  - {name: jobs write, principal: spiffe://acme.test/jobs, entitlement: reports, scopes: [write], expect: permit}\n" +
		"  - {name: people read, principal: login/zoe, entitlement: reports, scopes: [read], expect: permit}\n"
	changes := []policy.Prune{
		{Policy: "read"}, {Policy: "gone", Keep: []string{"read"}}, {Policy: "same-line", Keep: []string{"read"}}, {Policy: "unknown"},
		{Group: "support", Member: "login/sue"}, {Group: "jobs", Member: "spiffe://acme.test/jobs"}, {Group: "dba", Member: "login/zoe"}, {Group: "dba", Member: "login/ana"},
	}
	p, err := load(t, prunedFolder(scenario)).Propose(t.Context(), changes)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, l := range p.Left {
		left = append(left, l.String()+": "+l.Why)
	}
	want := []string{
		`narrow the permit gone to read: the scenario "jobs write" (a_test.yaml:2) fails`,
		`remove the permit unknown: there is no permit "unknown" in the folder`,
		`remove spiffe://acme.test/jobs from group jobs: the scenario "jobs write" (a_test.yaml:2) fails`,
		`remove login/zoe from group dba: groups.yaml does not list all of login/zoe in group "dba" as plain items`,
	}
	if !slices.Equal(left, want) || p.Tested != 2 || len(p.Made) != 4 {
		t.Errorf("made %v, tested %d, left\n%s", p.Made, p.Tested, strings.Join(left, "\n"))
	}
	applied(t, prunedFolder(scenario), p)
	if _, err := load(t, prunedFolder("scenarios:\n  - {name: wrong, principal: login/zoe, entitlement: reports, scopes: [read], expect: deny}\n")).Propose(t.Context(), changes); err == nil || !strings.Contains(err.Error(), "before any change") {
		t.Errorf("scenarios that fail without a change: %v", err)
	}
}

// Whatever is taken away, git applies the patch, and the policies load and permit nothing
// that they did not permit before.
func TestProposalsOfRandomFolders(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	made := 0
	for range 40 {
		var text strings.Builder
		var changes []policy.Prune
		for n := range 1 + random.IntN(12) {
			text.WriteString(pick("", "\n", "// a comment; with a sign\n", "\n\n// two\n// lines\n", "  "))
			fmt.Fprintf(&text, "@id(\"p%d\")%spermit (principal is Person, action == Action::\"request\", resource == Entitlement::\"%s\")%s;%s", n, pick("\n", " "), pick("reports", "tickets-api"),
				pick("", "\nwhen { context.ttl < duration(\"1h\") }", " unless { context.break_glass }"), pick("\n", "\n\n", " // end\n", " ", "\r\n"))
			switch random.IntN(3) {
			case 0:
				changes = append(changes, policy.Prune{Policy: fmt.Sprintf("p%d", n)})
			case 1:
				changes = append(changes, policy.Prune{Policy: fmt.Sprintf("p%d", n), Keep: []string{pick("read", "tickets:read")}})
			}
		}
		folder := fstest.MapFS{"a.cedar": {Data: []byte(pick("", "\ufeff") + strings.TrimRight(text.String(), pick("", "\n \r")))}, "groups.yaml": {Data: []byte(prunedGroups)}}
		p, err := load(t, folder).Propose(t.Context(), changes)
		if err != nil || len(p.Left) > 0 {
			t.Fatalf("%v %+v\n%s", err, p, folder["a.cedar"].Data)
		}
		if len(p.Files) == 0 {
			continue
		}
		before, after := load(t, folder), applied(t, folder, p)
		had, _ := before.Permits(identity("login/zoe"), 100)
		has, _ := after.Permits(identity("login/zoe"), 100)
		for _, permit := range has {
			was := had[slices.IndexFunc(had, func(p2 *broker.Permit) bool { return p2.ID == permit.ID })]
			for i, r := range permit.Reaches {
				for _, scope := range r.Scopes {
					if !slices.Contains(was.Reaches[i].Scopes, scope) {
						t.Errorf("%s permits %s, and did not before", permit.ID, scope)
					}
				}
			}
		}
		made += len(p.Made)
	}
	if made < 40 {
		t.Errorf("%d changes were made", made)
	}
}
