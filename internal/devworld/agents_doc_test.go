package devworld_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/internal/devworld/browser"
)

var update = flag.Bool("update", false, "write the calls in docs/agents.md")

const agentsPage = "../../docs/agents.md"

// block is a call or an answer in the page.
var block = regexp.MustCompile("(?s)```http\n(.*?)```")

// The calls and answers in docs/agents.md are those of a broker. Run the test with
// -update to write them into the page's blocks.
func TestAgentsPageShowsRealCalls(t *testing.T) {
	t.Parallel()
	w := run(t)
	got := record(t, w)
	page, err := os.ReadFile(agentsPage)
	if err != nil {
		t.Fatal(err)
	}
	shown := block.FindAllStringSubmatch(string(page), -1)
	if len(shown) != len(got) || len(got) < 20 {
		t.Fatalf("the page has %d calls and answers, want %d", len(shown), len(got))
	}
	same := true
	for i, b := range shown {
		if masked(b[1]) != masked(got[i]) {
			same = false
			if !*update {
				t.Errorf("block %d: got\n%s\nwant, with other values\n%s", i+1, b[1], got[i])
			}
		}
	}
	if !same && !*update {
		t.Error("if the broker is right, run go test ./internal/devworld -run TestAgentsPageShowsRealCalls -update")
	}
	if same || !*update {
		return
	}
	next := 0
	text := block.ReplaceAllStringFunc(string(page), func(string) string {
		next++
		return "```http\n" + strings.ReplaceAll(got[next-1], w.Broker, "127.0.0.1:8443") + "```"
	})
	if err := os.WriteFile(agentsPage, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// values are what differs from one run to another.
var values = []struct {
	form *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`eyJ[A-Za-z0-9_.…-]+`), "TOKEN"},
	{regexp.MustCompile(`(req|lse)_[0-9a-v]{26}`), "${1}_ID"},
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`[0-9a-f]{64}`), "HASH"},
	{regexp.MustCompile(`20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z`), "TIME"},
	{regexp.MustCompile(`"index": [0-9]+`), "INDEX"},
	{regexp.MustCompile(`127\.0\.0\.1:[0-9]+`), "ADDRESS"},
}

func masked(text string) string {
	for _, v := range values {
		text = v.form.ReplaceAllString(text, v.name)
	}
	return text
}

// A recorder makes calls and records them as the page shows them.
type recorder struct {
	t      *testing.T
	w      *devworld.World
	client *http.Client
	blocks []string
}

// record makes the calls of the page, in its order.
func record(t *testing.T, w *devworld.World) []string {
	r := &recorder{t: t, w: w, client: ordinary(t, w)}
	ask := func(scopes, why string) string {
		return fmt.Sprintf(`{"entitlement": "tickets-api", "scopes": [%q], "justification": %q}`, scopes, why)
	}
	issued := r.call("agent/triage", http.MethodPost, "/v1/credentials", ask("tickets:read", "triage of INC-4711"), http.StatusCreated)
	pending := r.call("agent/triage", http.MethodPost, "/v1/credentials", ask("tickets:close", "duplicate of INC-4711"), http.StatusAccepted)
	r.call("agent/triage", http.MethodPost, "/v1/requests/"+pending["id"].(string)+"/credentials", "", http.StatusConflict)
	ben := r.session("ben")
	r.decided(ben, pending, api.Approve, "checked")
	r.call("agent/triage", http.MethodPost, "/v1/requests/"+pending["id"].(string)+"/credentials", "", http.StatusCreated)
	r.call("agent/triage", http.MethodPost, "/v1/leases/"+issued["lease"].(string)+"/renew", "", http.StatusCreated)
	r.call("agent/triage", http.MethodPost, "/v1/leases/"+r.last()["lease"].(string)+"/revoke", `{"reason": "the triage is done"}`, http.StatusOK)
	r.call("service/report", http.MethodPost, "/v1/credentials", ask("tickets:comment", "weekly report"), http.StatusForbidden)
	refused := r.unseen("agent/triage", http.MethodPost, "/v1/credentials", ask("tickets:close", "tidying up"), http.StatusAccepted)
	r.decided(ben, refused, api.Deny, "these are still open")
	r.call("agent/triage", http.MethodPost, "/v1/requests/"+refused["id"].(string)+"/credentials", "", http.StatusForbidden)
	r.call("", http.MethodGet, "/v1/whoami", "", http.StatusUnauthorized)
	return r.blocks
}

// decided shows a poll, during which a person decides.
func (r *recorder) decided(person string, request map[string]any, decision, comment string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		body, _ := json.Marshal(api.Vote{Decision: decision, Digest: request["digest"].(string), Comment: comment})
		req, err := http.NewRequest(http.MethodPost, r.w.URL()+"/v1/requests/"+request["id"].(string)+"/approvals", bytes.NewReader(body))
		if err != nil {
			r.t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+person)
		req.Header.Set("Content-Type", "application/json")
		resp, err := r.client.Do(req)
		if err != nil {
			r.t.Error(err)
			return
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			r.t.Errorf("deciding: got %s", resp.Status)
		}
	}()
	r.call("agent/triage", http.MethodGet, fmt.Sprintf("/v1/requests/%s?wait=30s&after=%v", request["id"], request["version"]), "", http.StatusOK)
	<-done
}

// last returns the body of the last answer.
func (r *recorder) last() map[string]any {
	r.t.Helper()
	_, body, _ := strings.Cut(r.blocks[len(r.blocks)-1], "\n\n")
	var out map[string]any
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// unseen makes a call that the page does not show.
func (r *recorder) unseen(caller, method, path, body string, want int) map[string]any {
	r.t.Helper()
	keep := len(r.blocks)
	answer := r.call(caller, method, path, body, want)
	r.blocks = r.blocks[:keep]
	return answer
}

// call makes a call as a workload, records the call and its answer, and returns the body.
func (r *recorder) call(caller, method, path, body string, want int) map[string]any {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.w.URL()+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	text := method + " " + path + " HTTP/1.1\n"
	set := func(name, value, shown string) {
		req.Header.Set(name, value)
		text += name + ": " + shown + "\n"
	}
	if caller != "" {
		set("Authorization", "Bearer "+jwtSVID(r.t, r.w, "spiffe://"+devworld.TrustDomain+"/"+caller, r.w.URL()), "Bearer $JWT_SVID")
	}
	if method == http.MethodPost {
		key := fmt.Sprintf("example-%d", len(r.blocks)/2+1)
		set("Idempotency-Key", key, key)
	}
	if body != "" {
		set("Content-Type", "application/json", "application/json")
		text += "\n" + indented(r.t, []byte(body))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		r.t.Fatalf("%s %s: got %s, %v, want %d: %s", method, path, resp.Status, err, want, raw)
	}
	answer := fmt.Sprintf("HTTP/1.1 %s\n", resp.Status)
	for _, name := range []string{"Content-Type", "Location", "Retry-After", "WWW-Authenticate"} {
		if value := resp.Header.Get(name); value != "" {
			answer += name + ": " + value + "\n"
		}
	}
	r.blocks = append(r.blocks, text, answer+"\n"+indented(r.t, raw))
	return decoded(r.t, raw)
}

func decoded(t *testing.T, raw []byte) (out map[string]any) {
	t.Helper()
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

var long = regexp.MustCompile(`(eyJ[A-Za-z0-9_-]{20})[A-Za-z0-9_.-]*`)

// indented formats a body, with tokens cut short.
func indented(t *testing.T, raw []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, bytes.TrimSpace(raw), "", "  "); err != nil {
		t.Fatal(err)
	}
	return long.ReplaceAllString(out.String(), "$1…") + "\n"
}

// session returns the token of a person's session.
func (r *recorder) session(person string) string {
	r.t.Helper()
	verifier := rand.Text() + rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	b, err := browser.LogIn(r.t.Context(), r.w.PagesURL(), person)
	if err != nil {
		r.t.Fatal(err)
	}
	terminal, err := b.Follow(r.t.Context(), http.MethodPost, b.Pages()+"/ui/terminal", url.Values{
		"decision": {"allow"}, "port": {"65000"}, "state": {"test"}, "challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	at, err := url.Parse(terminal)
	if err != nil {
		r.t.Fatal(err)
	}
	client := &api.Client{BaseURL: r.w.URL(), HTTP: r.client}
	session, err := client.OpenSession(r.t.Context(), api.Login{Code: at.Query().Get("code"), Verifier: verifier})
	if err != nil {
		r.t.Fatal(err)
	}
	return session.Token
}

// The page shows the programs that e2e runs.
func TestAgentsPageShowsThePrograms(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(agentsPage)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Glob("../../docs/examples/first_credential.*")
	if err != nil || len(programs) != 2 {
		t.Fatalf("got programs %q, %v", programs, err)
	}
	programs = append(programs, "../../docs/examples/mcp_agent.py", "../../docs/examples/call_api.py")
	for _, path := range programs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		language := map[string]string{".py": "python", ".mjs": "js"}[filepath.Ext(path)]
		if !strings.Contains(string(page), "```"+language+"\n"+string(text)+"```\n") {
			t.Errorf("docs/agents.md does not show %s as it is", path)
		}
		if lines := strings.Count(string(text), "\n"); lines > 30 {
			t.Errorf("%s has %d lines: an example is short", path, lines)
		}
	}
}
