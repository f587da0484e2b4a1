package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
	"accessbroker.internal/e2e/servers"
	"accessbroker.internal/scim"
	"accessbroker.internal/store"
)

// A dialogue is a sequence of requests as a provider documents them, with the answers that
// it expects. {name} stands for a value that an earlier answer had.
type dialogue struct {
	Name  string
	Steps []dialogueStep
}

type dialogueStep struct {
	Method, Path string
	Body         json.RawMessage
	Status       int
	Keep         map[string]string // values of the answer to keep: names by JSON pointers
	Want         map[string]any    // values of the answer by JSON pointers; null: absent
}

// The dialogues that Entra ID and Okta document end as they expect, and scimmy, an
// independent implementation, reads every answer as the RFC's schemas define it.
func TestSCIMDialogues(t *testing.T) {
	p := newSCIMProvider(t)
	files, err := filepath.Glob(filepath.Join("testdata", "scim", "*.json"))
	if err != nil || len(files) < 2 {
		t.Fatalf("got %d dialogues, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var list []dialogue
		if err := json.Unmarshal(text, &list); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, d := range list {
			t.Run(d.Name, func(t *testing.T) { p.play(t, d) })
		}
	}
	for _, path := range []string{"/ServiceProviderConfig", "/ResourceTypes", "/ResourceTypes/User", "/Schemas", "/Schemas/urn:ietf:params:scim:schemas:core:2.0:User", "/Users", "/Groups", "/Users?count=0", "/Nothing", "/Users?filter=x"} {
		p.call(t, http.MethodGet, path, nil)
	}
	if len(p.answers) < 50 {
		t.Fatalf("only %d answers were collected", len(p.answers))
	}
	p.validate(t)
}

// A scimProvider is the service provider on loopback, with a source for each dialogue.
type scimProvider struct {
	*httptest.Server
	answers []scimmyAnswer
}

type scimmyAnswer struct {
	Method, Path string
	Status       int
	Body         json.RawMessage
}

func newSCIMProvider(t *testing.T) *scimProvider {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{URL: "sqlite:" + filepath.Join(t.TempDir(), "broker.db"), NoSync: true, Reserve: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	openSCIMLog(t, db)
	source := directory.Source{Name: "corp", Provider: "login", Groups: directory.GroupName, Manager: directory.ManagerID}
	d, err := directory.Open(t.Context(), directory.Config{
		Store: db, Sources: []directory.Source{source}, Rows: store.DirectoryRows(db),
	})
	if err != nil {
		t.Fatal(err)
	}
	subject, err := scim.ParseSubject("externalId")
	if err != nil {
		t.Fatal(err)
	}
	p := &scimProvider{}
	h, err := scim.NewHandler(scim.Config{
		Directory: d, URL: "https://broker.acme.test", Subjects: map[string]scim.Subject{"corp": subject},
		Caller: func(*http.Request) (broker.Caller, string, error) {
			return broker.Self(broker.Identity{ID: "scim:corp", Kind: broker.KindProvisioner}, time.Now()), "corp", nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Server = httptest.NewServer(h)
	t.Cleanup(p.Close)
	return p
}

// openSCIMLog opens a log, without which the store takes no records.
func openSCIMLog(t *testing.T, db *store.Store) {
	t.Helper()
	const origin = "broker.acme.test/log/abcdefgh"
	_, public, err := audit.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: origin}, Algorithm: "Ed25519", Public: []byte(public), Sealed: []byte{1}, Signs: time.Now()}
	if err := db.OpenLog(t.Context(), origin, public, key, first); err != nil {
		t.Fatal(err)
	}
}

func (p *scimProvider) call(t *testing.T, method, path string, body []byte) (int, any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.URL+"/scim/v2"+strings.ReplaceAll(path, " ", "%20"), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/scim+json; charset=utf-8")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer any
	if len(text) > 0 {
		if kind := resp.Header.Get("Content-Type"); kind != "application/scim+json" {
			t.Errorf("%s %s: got the media type %q", method, path, kind)
		}
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatalf("%s %s: %v\n%s", method, path, err, text)
		}
		p.answers = append(p.answers, scimmyAnswer{method, path, resp.StatusCode, text})
	}
	return resp.StatusCode, answer
}

func (p *scimProvider) play(t *testing.T, d dialogue) {
	kept := map[string]string{}
	fill := func(text string) string {
		for name, value := range kept {
			text = strings.ReplaceAll(text, "{"+name+"}", value)
		}
		return text
	}
	for i, s := range d.Steps {
		status, answer := p.call(t, s.Method, fill(s.Path), []byte(fill(string(s.Body))))
		if status != s.Status {
			t.Fatalf("step %d, %s %s: got %d %v, want %d", i+1, s.Method, s.Path, status, answer, s.Status)
		}
		for name, pointer := range s.Keep {
			text, ok := at(answer, pointer).(string)
			if !ok {
				t.Fatalf("step %d: the answer has no %s", i+1, pointer)
			}
			kept[name] = text
		}
		for pointer, want := range s.Want {
			if text, ok := want.(string); ok {
				want = fill(text)
			}
			if got := at(answer, pointer); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("step %d, %s %s: got %s = %v, want %v", i+1, s.Method, s.Path, pointer, got, want)
			}
		}
	}
}

// at returns the value at a JSON pointer (RFC 6901); nil if there is none.
func at(v any, pointer string) any {
	for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		switch x := v.(type) {
		case map[string]any:
			v = x[part]
		case []any:
			var i int
			if n, err := fmt.Sscan(part, &i); n != 1 || err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// validate has scimmy read all answers.
func (p *scimProvider) validate(t *testing.T) {
	t.Helper()
	modules, err := servers.Modules("scim")
	if err != nil {
		t.Fatal(err)
	}
	in, err := json.Marshal(p.answers)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), installed(t, "node"), filepath.Join("clients", "scim", "validate.mjs"))
	cmd.Env = append(os.Environ(), "SCIM_MODULES="+modules)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &errs
	out, err := cmd.Output()
	var report struct {
		Checked map[string]int
		Faults  []string
	}
	if err == nil {
		err = json.Unmarshal(out, &report)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	for _, fault := range report.Faults {
		t.Error(fault)
	}
	t.Logf("scimmy read %v", report.Checked)
	for _, kind := range []string{"User", "Group", "ListResponse", "Error", "Schema", "ResourceType", "ServiceProviderConfig"} {
		if report.Checked[kind] == 0 {
			t.Errorf("no answer is a %s", kind)
		}
	}
}
