package notify

import (
	"bytes"
	"embed"
	"fmt"
	"regexp"
	"strings"
	"text/template"
	"time"
	"unicode"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/visible"
)

// Facts are the content of a message. plain has cleaned the requester's texts.
type Facts struct {
	Event          string    `json:"event"` // request.pending, …
	Time           time.Time `json:"time"`  // of the event
	Group          string    `json:"group"` // whose channel it is
	Request        string    `json:"request"`
	URL            string    `json:"url"` // of the page, which requires a login
	Status         string    `json:"status"`
	Entitlement    string    `json:"entitlement"`
	Scopes         []string  `json:"scopes,omitempty"`
	Requester      string    `json:"requester"`
	RequesterKind  string    `json:"requester_kind"`
	Accountable    []string  `json:"accountable,omitempty"`
	Justification  string    `json:"justification,omitempty"`
	BindingMessage string    `json:"binding_message,omitempty"`
	Ticket         string    `json:"ticket,omitempty"`
	TTL            string    `json:"ttl"`

	AuthorizationDetails []string `json:"authorization_details,omitempty"` // what the token is good for, in words

	Duration    string            `json:"duration"`
	BreakGlass  bool              `json:"break_glass,omitempty"`
	Needed      map[string]string `json:"needed,omitempty"` // by group: "1 of 2"
	LapsesAt    *time.Time        `json:"lapses_at,omitempty"`
	ReviewDueAt *time.Time        `json:"review_due_at,omitempty"`
	Approvals   []Approval        `json:"approvals,omitempty"`
}

// An Approval is one person's vote.
type Approval struct {
	Person   string    `json:"person"`
	Decision string    `json:"decision"` // approve, deny
	At       time.Time `json:"at"`
}

// maxText is the maximum length of a free text in a message, in characters.
const maxText = 500

// plain returns a text of another person as one line of at most maxText
// characters. Gaps become one space, and characters that a reader would not see, such
// as those that reverse the direction of text, are left out.
func plain(s string) string {
	before := rune(0)
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		seen := unicode.IsSpace(r) || visible.Rune(r, before)
		if before = r; !seen {
			return -1
		}
		return r
	}, s)), " ")
	if runes := []rune(s); len(runes) > maxText {
		return string(runes[:maxText]) + "…"
	}
	return s
}

var statuses = map[broker.RequestStatus]string{
	broker.RequestPending: "pending", broker.RequestApproved: "approved", broker.RequestDenied: "denied",
	broker.RequestWithdrawn: "withdrawn", broker.RequestLapsed: "lapsed", broker.RequestEnded: "ended",
}

// factsOf returns the content of the message for a notice about r. pages is the URL
// of the broker's pages.
func factsOf(pages string, n *broker.Notice, r *broker.Request, now time.Time) Facts {
	f := Facts{
		Event: string(n.Event), Time: n.Created.UTC(), Group: n.Group, Request: r.ID.String(), URL: pages + "/ui/requests/" + r.ID.String(),
		Status: statuses[r.State(now)], Entitlement: r.Entitlement, Scopes: r.Scopes, Requester: r.Requester.ID, RequesterKind: string(r.Requester.Kind),
		Accountable: r.Requester.Accountable, Justification: plain(r.Justification), BindingMessage: plain(r.Message), Ticket: plain(r.Ticket),
		TTL: broker.FormatDuration(r.TTL), Duration: broker.FormatDuration(r.Duration), BreakGlass: r.BreakGlass,
	}
	for i := range r.Details {
		f.AuthorizationDetails = append(f.AuthorizationDetails, plain(r.Details[i].String()))
	}
	if !r.Lapses.IsZero() {
		lapses := r.Lapses.UTC()
		f.LapsesAt = &lapses
	}
	if !r.ReviewDue.IsZero() && r.Reviewed.IsZero() {
		due := r.ReviewDue.UTC()
		f.ReviewDueAt = &due
	}
	for _, p := range r.ApprovalProgress() {
		if f.Needed == nil {
			f.Needed = map[string]string{}
		}
		f.Needed[p.Group] = fmt.Sprintf("%d of %d", p.Have, p.Count)
	}
	for _, a := range r.Approvals {
		v := Approval{a.Person, "deny", a.At.UTC()}
		if a.Approve {
			v.Decision = "approve"
		}
		f.Approvals = append(f.Approvals, v)
	}
	return f
}

//go:embed templates/*.txt
var builtIn embed.FS

// Templates are the templates subject.txt and body.txt of messages: Go's
// text/template, applied to Facts.
type Templates struct{ subject, body *template.Template }

// NewTemplates parses the templates and tries them. An empty text means the
// built-in template.
func NewTemplates(subject, body string) (*Templates, error) {
	read := func(name, text string) (*template.Template, error) {
		if text == "" {
			content, err := builtIn.ReadFile("templates/" + name)
			if err != nil {
				return nil, err
			}
			text = string(content)
		}
		t, err := template.New(name).Funcs(template.FuncMap{"join": func(list []string) string { return strings.Join(list, ", ") }}).Option("missingkey=error").Parse(text)
		if err == nil {
			_, err = execute(t, Facts{LapsesAt: new(time.Time), ReviewDueAt: new(time.Time)})
		}
		return t, err
	}
	t := &Templates{}
	var err error
	if t.subject, err = read("subject.txt", subject); err != nil {
		return nil, templateMistake("subject.txt", err)
	}
	if t.body, err = read("body.txt", body); err != nil {
		return nil, templateMistake("body.txt", err)
	}
	return t, nil
}

var (
	templateForm = regexp.MustCompile(`template: [^:]*:(\d+)(?::\d+)?: (?s:(.*))$`)
	fieldForm    = regexp.MustCompile(`at <(.*)>: can't evaluate field`)
)

// templateMistake names the line of a mistake in a template, and what to write.
func templateMistake(name string, err error) error {
	m := templateForm.FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if field := fieldForm.FindStringSubmatch(m[2]); field != nil {
		return fmt.Errorf("%s:%s: there is no field %s: docs/notify.md lists the fields", name, m[1], field[1])
	}
	return fmt.Errorf("%s:%s: %s", name, m[1], m[2])
}

// maxMessage is the maximum size of a subject or body, in bytes.
const maxMessage = 16 << 10

func execute(t *template.Template, f Facts) (string, error) {
	var b bytes.Buffer
	if err := t.Execute(&b, f); err != nil {
		return "", fmt.Errorf("executing the template: %w", err)
	}
	if b.Len() > maxMessage {
		return "", fmt.Errorf("executing the template: the message exceeds %d bytes", maxMessage)
	}
	return strings.TrimSpace(b.String()), nil
}

// text returns the subject, as one line, and the body.
func (t *Templates) text(f Facts) (subject, body string, err error) {
	if subject, err = execute(t.subject, f); err != nil {
		return "", "", err
	}
	body, err = execute(t.body, f)
	return plain(subject), body, err
}
