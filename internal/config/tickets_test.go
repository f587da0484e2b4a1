package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodTrackers = `tickets:
  jira:
    jira: {url: "https://acme.atlassian.net", username: broker@acme.test, password_file: secret, window: {from: customfield_10501, until: customfield_10502}}
    prefix: INC-
    states: {open: [To Do, In Progress], implementing: [Implement], closed: [Done]}
    people: {"5b10ac8d82e05b22cc7d4ef5": login/ana, bot: "spiffe://acme.test/agent/triage"}
    webhook_secret_file: secret
  servers:
    jira: {url: "https://jira.acme.test/jira", server: true, token_file: secret, allow_private: true}
    pattern: "[A-Z]{2,5}-[0-9]+"
    person: login/{assignee}
    interval: 5m
    on_stale: hold
  changes:
    servicenow: {url: "https://acme.service-now.com", table: change_request, username: broker, password_file: secret, assignee_by: user_name}
    prefix: CHG
    stale_after: 10m
  github:
    github: {repository: acme/payments, token_file: secret}
    prefix: GH-
  other:
    http: {url: "https://tracker.acme.test/t/{ticket}", token_file: secret, token_header: X-Api-Key, fields: {id: /id, state: /state, assignee: /who}}
    pattern: "T([0-9]+)"
`

func trackersDir(t *testing.T) string {
	t.Helper()
	dir := sealedDir(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTrackers(t *testing.T) {
	s, err := understand(trackersDir(t), goodConfig+goodTrackers)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.ticketStates(); !slices.Equal(got, []string{"implementing", "open"}) {
		t.Errorf("got states %v", got)
	}
	for name, want := range map[string]struct {
		interval, stale time.Duration
		hold            bool
		match, other    string
	}{
		"jira":    {time.Minute, 5 * time.Minute, false, "INC-7", "INC-7a"},
		"servers": {5 * time.Minute, 10 * time.Minute, true, "OPS-7", "xOPS-7"},
		"changes": {time.Minute, 10 * time.Minute, false, "CHG0030001", "INC0030001"},
		"github":  {time.Minute, 5 * time.Minute, false, "GH-7", "7"},
		"other":   {time.Minute, 5 * time.Minute, false, "T7", "T7\n"},
	} {
		c := s.Trackers[name]
		made, err := c.Open()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if made.Interval != want.interval || made.StaleAfter != want.stale || c.Hold != want.hold || !made.Pattern.MatchString(want.match) || made.Pattern.MatchString(want.other) {
			t.Errorf("%s: got %+v, pattern %s", name, c, made.Pattern)
		}
	}
	if !s.ticketWindows() || (&Config{Trackers: map[string]Tracker{"github": s.Trackers["github"]}}).ticketWindows() {
		t.Error("the trackers with change windows are not known")
	}
	changes := s.Trackers["changes"]
	if changes.ServiceNow.From != "start_date" || changes.ServiceNow.AssigneeBy != "assigned_to.user_name" {
		t.Errorf("the window of changes: got %+v", changes.ServiceNow)
	}
	if s.Trackers["jira"].Jira.AssigneeBy != "accountId" || s.Trackers["servers"].Jira.AssigneeBy != "name" || s.Trackers["github"].Host.URL != "https://api.github.com" {
		t.Errorf("defaults: got %+v", s.Trackers)
	}
	if fresh, err := understand(trackersDir(t), goodConfig+goodTrackers); err != nil || slices.Contains(fresh.NeedsRestart(fresh), "tickets") {
		t.Errorf("an unchanged file needs a restart, or: %v", err)
	}
}

func TestBadTrackers(t *testing.T) {
	const head = "tickets:\n  jira:\n    "
	const jira = head + `jira: {url: "https://jira.acme.test"}` + "\n    "
	for name, test := range map[string]struct{ text, want string }{
		"no kind":              {head + "prefix: INC-\n", "exactly one kind"},
		"two kinds":            {jira + "prefix: INC-\n    github: {repository: a/b}\n", "exactly one kind"},
		"no pattern":           {head + `jira: {url: "https://jira.acme.test"}` + "\n", "write which tickets are here"},
		"prefix and pattern":   {jira + "prefix: INC-\n    pattern: INC-[0-9]+\n", "write which tickets are here"},
		"a bad pattern":        {jira + "pattern: \"INC-[\"\n", "is not a regular expression"},
		"two groups":           {jira + "pattern: \"(a)(b)\"\n", "has more than one group"},
		"any ticket":           {jira + "pattern: \"[0-9]*\"\n", "matches the empty text"},
		"out of the anchors":   {jira + "pattern: \"a)|(b\"\n", "is not a regular expression"},
		"the same tickets":     {jira + "prefix: INC-\n  more:\n    github: {repository: a/b}\n    pattern: \"INC-[0-9]+\"\n", "has the same tickets"},
		"http":                 {head + `jira: {url: "http://jira.acme.test"}` + "\n    prefix: INC-\n", "use an https URL"},
		"a user in the URL":    {head + `jira: {url: "https://a:b@jira.acme.test"}` + "\n    prefix: INC-\n", "without user and fragment"},
		"no repository":        {head + "github: {}\n    prefix: INC-\n", "owner/name"},
		"a path as repository": {head + "github: {repository: a/../b}\n    prefix: INC-\n", "owner/name"},
		"no place":             {head + `http: {url: "https://t.acme.test/", fields: {id: /a, state: /b}}` + "\n    prefix: INC-\n", "{ticket}"},
		"a missing secret":     {head + `jira: {url: "https://jira.acme.test", token_file: nowhere}` + "\n    prefix: INC-\n", "nowhere"},
		"a password alone":     {head + `jira: {url: "https://jira.acme.test", password_file: secret}` + "\n    prefix: INC-\n", "belong together"},
		"two secrets":          {head + `jira: {url: "https://jira.acme.test", username: a, password_file: secret, token_file: secret}` + "\n    prefix: INC-\n", "not both"},
		"half a window":        {head + `jira: {url: "https://jira.acme.test", window: {from: a}}` + "\n    prefix: INC-\n", "both ends"},
		"a window in GitHub":   {head + "github: {repository: a/b, window: {from: a, until: b}}\n    prefix: INC-\n", "unknown key"},
		"assignee":             {head + `jira: {url: "https://jira.acme.test", assignee_by: login}` + "\n    prefix: INC-\n", "choose one of account_id, email, name"},
		"a bad person":         {jira + "prefix: INC-\n    people: {a: ana}\n", "is not a person"},
		"an unknown provider":  {jira + "prefix: INC-\n    people: {a: google/ana}\n", "is not in attest.people"},
		"a form of people":     {jira + "prefix: INC-\n    person: login/x\n", "{assignee}"},
		"a short interval":     {jira + "prefix: INC-\n    interval: 1s\n", "must be 5s to 1h"},
		"a short stale_after":  {jira + "prefix: INC-\n    interval: 5m\n    stale_after: 9m\n", "at least two intervals"},
		"on_stale":             {jira + "prefix: INC-\n    on_stale: keep\n", "choose end or hold"},
		"a state of nothing":   {jira + "prefix: INC-\n    states: {open: []}\n", "list the tracker's statuses"},
		"a bad state":          {jira + "prefix: INC-\n    states: {In Progress: [x]}\n", "is not a valid name"},
		"open and closed":      {jira + "prefix: INC-\n    states: {open: [Done], closed: [Done]}\n", "listed as closed too"},
		"a bad name":           {"tickets:\n  \"a/b\":\n    github: {repository: a/b}\n    prefix: INC-\n", "is not a valid name"},
	} {
		withPeople := strings.Replace(goodConfig, "\nattest:\n", "\nattest:\n  people: {login: {issuer: \"https://login.acme.test\", client_id: broker, client_secret_file: secret}}\n", 1)
		_, err := understand(trackersDir(t), withPeople+test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

// The example of docs/tickets.md loads.
func TestDocumentedTrackers(t *testing.T) {
	text, err := os.ReadFile("../../docs/tickets.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "```yaml\n")
	example, _, found := strings.Cut(after, "```")
	if !found || !strings.Contains(example, "tickets:") {
		t.Fatalf("docs/tickets.md has no example:\n%s", example)
	}
	dir := trackersDir(t)
	for _, name := range []string{"jira.token", "jira.hook", "now.secret", "github.token", "desk.token"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("s3cret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := understand(dir, goodConfig+example)
	if err != nil || len(s.Trackers) != 4 {
		t.Errorf("got %d trackers, %v", len(s.Trackers), err)
	}
}
