package tickets

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A Hook is how a tracker proves that a webhook is its own. Without a secret, the tracker
// has no webhook.
type Hook struct {
	Kind       string // jira, servicenow, github or http
	Secret     []byte
	Repository string // of GitHub
}

// HookPath is where trackers send their webhooks, followed by the tracker's name.
const HookPath = "/hooks/tickets/"

// maxHook bounds the body of a webhook in bytes. A longer one is no hint; the ticket is
// looked at when its interval is over.
const maxHook = 64 << 10

// ServeHTTP receives the webhooks of all trackers. A webhook is a hint to look at a ticket
// that the broker looks at anyway: nothing in its body is believed, and no ticket becomes
// known by it. Every authentic webhook has the same answer.
func (w *Watcher) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	t := w.trackers[strings.TrimPrefix(r.URL.Path, HookPath)]
	if t == nil || len(t.Hook.Secret) == 0 {
		http.NotFound(out, r)
		return
	}
	if r.Method != http.MethodPost {
		out.Header().Set("Allow", http.MethodPost)
		http.Error(out, "only POST", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(out, r.Body, maxHook))
	if err != nil {
		http.Error(out, "the body is too long, or did not arrive", http.StatusRequestEntityTooLarge)
		return
	}
	if !t.Hook.authentic(r.Header, body) {
		http.Error(out, "the webhook's secret is not the tracker's", http.StatusUnauthorized)
		return
	}
	if id := t.Hook.ticket(body); id != "" {
		w.hint(t.key(id), time.Now())
	}
	out.WriteHeader(http.StatusNoContent)
}

// authentic reports whether a webhook proves the secret: by an HMAC-SHA256 of the body, as
// GitHub and Jira do, or as a bearer token. GitHub always signs.
func (h *Hook) authentic(header http.Header, body []byte) bool {
	signature := header.Get("X-Hub-Signature-256")
	if h.Kind == "jira" && signature == "" {
		signature = header.Get("X-Hub-Signature")
	}
	if signature != "" || h.Kind == "github" {
		sent, err := hex.DecodeString(strings.TrimPrefix(signature, "sha256="))
		mac := hmac.New(sha256.New, h.Secret)
		mac.Write(body)
		return err == nil && strings.HasPrefix(signature, "sha256=") && hmac.Equal(sent, mac.Sum(nil))
	}
	token, ok := strings.CutPrefix(header.Get("Authorization"), "Bearer ")
	sent, want := sha256.Sum256([]byte(token)), sha256.Sum256(h.Secret)
	return ok && subtle.ConstantTimeCompare(sent[:], want[:]) == 1
}

// ticket returns the id of the ticket that a webhook names, or "".
func (h *Hook) ticket(body []byte) string {
	var hint struct {
		Ticket string `json:"ticket"` // of http
		Number string `json:"number"` // of ServiceNow
		Issue  struct {
			Key    string `json:"key"` // of Jira
			Number int64  `json:"number"`
		} `json:"issue"`
		Repository struct {
			FullName string `json:"full_name"`
		} `json:"repository"`
	}
	if json.Unmarshal(body, &hint) != nil {
		return ""
	}
	switch h.Kind {
	case "jira":
		return hint.Issue.Key
	case "servicenow":
		return hint.Number
	case "github":
		if hint.Issue.Number <= 0 || !strings.EqualFold(hint.Repository.FullName, h.Repository) {
			return ""
		}
		return strconv.FormatInt(hint.Issue.Number, 10)
	}
	return hint.Ticket
}
