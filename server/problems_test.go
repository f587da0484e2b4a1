package server

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

var update = flag.Bool("update", false, "write docs/problems.md, and the codes in docs/agents.md")

const problemsIntro = `# Problems

An error on ` + "`/v1`" + ` is a problem document (RFC 9457). Its ` + "`type`" + ` is a URN that ends with the ` + "`code`" + `; it is the same for every
broker. An error on ` + "`/oauth2`" + ` has the same ` + "`code`" + ` next to the OAuth ` + "`error`" + `. The ` + "`detail`" + ` of an answer may be more precise
than the advice here. ` + "`go test ./server -run TestProblemsAreDocumented -update`" + ` writes this page from the broker's table of errors.
`

// problemsPage renders the page that describes every code, with an anchor for each.
func problemsPage() string {
	var b strings.Builder
	b.WriteString(problemsIntro)
	for _, row := range sentErrors() {
		fmt.Fprintf(&b, "\n## %s\n\n`%s`: %s. To do: %s.\n\nHTTP status %d on `/v1`; `%s` on `/oauth2`.\n",
			row.code(), api.ProblemType+string(row.code()), row.title, row.advice, row.status, row.oauth)
	}
	return b.String()
}

const (
	codesHead = "| code | status | what to do |\n|---|---|---|\n"
	agentsDoc = "../docs/agents.md"
)

// codesTable renders the table of codes for agents.
func codesTable() string {
	var b strings.Builder
	b.WriteString(codesHead)
	for _, row := range sentErrors() {
		fmt.Fprintf(&b, "| `%s` | %d | %s |\n", row.code(), row.status, strings.ReplaceAll(row.advice, "|", "\\|"))
	}
	return b.String()
}

// sentErrors returns the rows of the table of errors that clients can get, by code.
func sentErrors() (rows []errorRow) {
	for _, row := range append(slices.Clone(errorTable), unknown) {
		if row.err != errClientGone {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b errorRow) int { return strings.Compare(string(a.code()), string(b.code())) })
	return rows
}

// The page for agents lists every code with what to do.
func TestAgentsPageListsEveryCode(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(agentsDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), codesHead)
	if !found {
		t.Fatalf("%s has no table that begins with %q", agentsDoc, codesHead)
	}
	end := 0
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		end += len(line)
	}
	got, want := codesHead+rest[:end], codesTable()
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s does not list the codes of errors.go: run go test ./server -run TestAgentsPageListsEveryCode -update", agentsDoc)
	}
	if err := os.WriteFile(agentsDoc, []byte(before+want+rest[end:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The type of a problem leads to a section of the documentation.
func TestProblemsAreDocumented(t *testing.T) {
	t.Parallel()
	const page = "../docs/problems.md"
	want := problemsPage()
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not the table of errors.go: run go test ./server -run TestProblemsAreDocumented -update", page)
	}
	if n := strings.Count(want, "\n## "); n < 50 {
		t.Errorf("the page has only %d sections", n)
	}
}

// The type does not depend on the deployment.
func TestProblemTypeIsStable(t *testing.T) {
	t.Parallel()
	for _, external := range []string{"https://broker.acme.test", "https://acme.test/broker"} {
		w := newWorld(t, func(cfg *Config) { cfg.ExternalURL = external })
		resp := w.do("GET", "/v1/requests/req_x", "", "", "Authorization", "Bearer "+agent)
		var problem api.Problem
		if err := json.Unmarshal(w.body(resp), &problem); err != nil || problem.Type != "urn:access-broker:problem:"+broker.Code(broker.ErrNotFound) {
			t.Errorf("%s: got %+v, %v", external, problem, err)
		}
	}
}
