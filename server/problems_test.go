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

var update = flag.Bool("update", false, "write docs/problems.md")

const problemsIntro = `# Problems

An error on ` + "`/v1`" + ` is a problem document (RFC 9457). Its ` + "`type`" + ` is a URN that ends with the ` + "`code`" + `; it is the same for every
broker. An error on ` + "`/oauth2`" + ` has the same ` + "`code`" + ` next to the OAuth ` + "`error`" + `. The ` + "`detail`" + ` of an answer may be more precise
than the advice here. ` + "`go test ./server -run TestProblemsAreDocumented -update`" + ` writes this page from the broker's table of errors.
`

// problemsPage renders the page that describes every code, with an anchor for each.
func problemsPage() string {
	var b strings.Builder
	b.WriteString(problemsIntro)
	rows := append(slices.Clone(errorTable), unknown)
	slices.SortFunc(rows, func(a, b errorRow) int { return strings.Compare(string(a.code()), string(b.code())) })
	for _, row := range rows {
		if row.err == errClientGone {
			continue // never sent
		}
		fmt.Fprintf(&b, "\n## %s\n\n`%s`: %s. To do: %s.\n\nHTTP status %d on `/v1`; `%s` on `/oauth2`.\n",
			row.code(), api.ProblemType+string(row.code()), row.title, row.advice, row.status, row.oauth)
	}
	return b.String()
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
