package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/screen"
	"accessbroker.internal/internal/visible"
)

// printable escapes text of other parties for one line of a terminal: every
// character that moves the cursor, starts a line, changes colours, turns the writing
// direction or has no ink becomes an escape sequence such as \n or \u202e.
func printable(s string) string {
	var b strings.Builder
	before := rune(0)
	for _, r := range s {
		switch {
		case unicode.IsPrint(r) && visible.Rune(r, before):
			b.WriteRune(r)
		case unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		before = r
	}
	return b.String()
}

// A card writes rows of a name and a text to a tabwriter. All text passes printable,
// so that text of other parties can't imitate a row.
type card struct{ w io.Writer }

// cardWidth is the width of texts. With the longest name they fit in 80 columns.
const cardWidth = 64

// line writes a text, wrapped. It writes nothing if the text is empty.
func (c card) line(name, text string) { c.rows(name, screen.Wrap(printable(text), cardWidth)) }

// quote writes a text of another party, with a mark at the start of each line.
func (c card) quote(name, text string) { c.rows(name, quotation(text)) }

// quotation returns the rows of a quoted text. It breaks long words, because the terminal
// would continue them without the mark.
func quotation(text string) (rows []string) {
	const mark = "| "
	for line := range strings.Lines(text) {
		for _, part := range screen.Wrap(printable(strings.TrimSuffix(line, "\n")), cardWidth-len(mark)) {
			for _, row := range broken(part, cardWidth-len(mark)) {
				rows = append(rows, mark+row)
			}
		}
	}
	return rows
}

// quotedRows is how many rows of a requester's text are shown, so that the text does
// not push the other facts off the screen.
const quotedRows = 12

// written writes a text of the requester, as a quotation of bounded height.
func (c card) written(name, text string) {
	if text == "" {
		return
	}
	rows := quotation(text)
	if more := len(rows) - quotedRows; more > 1 {
		rows = append(rows[:quotedRows], fmt.Sprintf("… %d more lines, with -o json", more))
	}
	c.rows(name, append(rows, "(written by the requester, not verified)"))
}

// broken divides a text into rows of at most width columns.
func broken(text string, width int) (rows []string) {
	start, used := 0, 0
	for i, r := range text {
		columns := 1
		if r >= '\u1100' { // the first wide character; narrow ones above it only make a row shorter
			columns = 2
		}
		if used+columns > width {
			rows, start, used = append(rows, text[start:i]), i, 0
		}
		used += columns
	}
	return append(rows, text[start:])
}

func (c card) rows(name string, rows []string) {
	for _, row := range rows {
		fmt.Fprintf(c.w, "%s\t%s\n", name, row)
		name = ""
	}
}

// ticket writes what a tracker stated. Its texts are quoted as all texts of other people.
func (c card) ticket(t *api.TicketSeen) {
	if t == nil {
		return
	}
	c.quote("in "+t.Tracker, t.Title)
	c.line("", "(written in "+t.Tracker+", not verified)")
	c.line("state", fmt.Sprintf("%s (%s), seen %s", cmp.Or(strings.Join(t.States, ", "), "closed"), t.Status, clock(t.SeenAt)))
	switch {
	case t.Assignee == "":
		c.line("assignee", "nobody")
	case len(t.Assignees) == 0:
		c.line("assignee", "not known to the broker: "+t.Assignee)
	default:
		c.line("assignee", strings.Join(t.Assignees, ", ")+" ("+t.Assignee+")")
	}
	if !t.WindowUntil.IsZero() {
		c.line("window", clock(t.WindowFrom)+" to "+clock(t.WindowUntil))
	}
}

// marks writes what the operators state about a workload.
func (c card) marks(m *api.Marks) {
	c.line("purpose", m.Purpose)
	c.line("model", m.Model)
	for i, p := range m.Ceiling {
		name := ""
		if i == 0 {
			name = "at most"
		}
		c.rows(name, []string{strings.TrimSpace(p.Entitlement + " " + strings.Join(p.Scopes, " "))})
	}
	if m.Ceiling != nil && len(m.Ceiling) == 0 {
		c.line("at most", "nothing")
	}
}

// writeRequest writes all fields of a request, with its facts if the broker sent them.
func writeRequest(w io.Writer, r *api.Request) {
	c, f := card{w}, r.Facts
	if f == nil {
		f = &api.Facts{}
	}
	c.line("request", r.ID)
	if r.ID == "" {
		c.line("dry run", "no request was filed")
	}
	c.line("status", statusOf(r))
	c.line("requester", requesterOf(r))
	c.chain(r)
	c.line("proof", proofOf(f))
	c.line("owner", strings.Join(r.Accountable, ", "))
	c.marks(&r.Marks)
	if r.Justification == "" && r.Facts != nil {
		c.line("why", "no justification")
	}
	c.written("why", r.Justification)
	c.written("message", r.BindingMessage)
	c.line("ticket", strings.TrimSpace(r.Ticket+" "+f.TicketURL))
	c.ticket(f.Ticket)
	c.line("entitlement", entitlementOf(r, f))
	c.scopes(r.Scopes, f.ScopeTexts)
	for _, name := range slices.Sorted(maps.Keys(r.Parameters)) {
		c.written(name, r.Parameters[name])
	}
	for i := range r.AuthorizationDetails {
		c.quote("only for", r.AuthorizationDetails[i].Words())
	}
	c.line("credential", fmt.Sprintf("valid %s, collectable for %s", r.TTL, r.Duration))
	c.line("revocation", revocations[f.Revocation])
	if r.KeyThumbprint != "" {
		c.line("bound to", "the DPoP key "+r.KeyThumbprint)
	} else {
		c.line("bound to", bindings[f.Binding])
	}
	if !r.AccessEndsAt.IsZero() {
		c.line("ends by", clock(r.AccessEndsAt))
	}
	c.quote("permits", f.Effect)
	c.line("extends", r.Extends)
	if !r.NotBefore.IsZero() {
		c.line("not before", clock(r.NotBefore))
	}
	c.votes(r)
	c.grant(r.Grant)
	for _, reason := range r.Decision.Reasons {
		c.line("reason", reason)
	}
	c.line("policies", strings.Join(r.Decision.Policies, " "))
	if r.Facts != nil {
		c.history(f)
		c.line("digest", r.Digest)
	}
}

// writeOutcome writes the state of a request after a vote or review. The person has
// seen the other fields.
func writeOutcome(w io.Writer, r *api.Request) {
	c := card{w}
	c.line("request", r.ID)
	c.line("status", statusOf(r))
	c.votes(r)
	c.grant(r.Grant)
}

func (c card) grant(g *api.Grant) {
	if g != nil {
		c.line("granted", strings.TrimPrefix(strings.Join(g.Scopes, " ")+", valid "+g.TTL.String(), ", "))
		c.line("collectable", "until "+clock(g.CollectUntil))
	}
}

// revocations describe the effect of a revocation, by its name on the wire.
var revocations = map[string]string{
	"immediate":   "immediate",
	"at_expiry":   "not possible; it expires by itself",
	"at_rotation": "not possible; it works until the system rotates its password",
	"never":       "not possible; it is not a short-lived credential",
}

func proofOf(f *api.Facts) string {
	if f.Proof.Method == "" {
		return ""
	}
	text := f.Proof.Method
	if f.From != "" {
		text += " from " + f.From
	}
	return text + ", valid until " + clock(f.Proof.ExpiresAt)
}

func entitlementOf(r *api.Request, f *api.Facts) string {
	text := r.Entitlement
	if f.Description != "" {
		text += ": " + f.Description
	}
	if f.Owner != "" {
		text += " (owner " + f.Owner + ")"
	}
	return text
}

// scopes writes scopes with their descriptions in one row each, or without
// descriptions in one row.
func (c card) scopes(scopes []string, texts map[string]string) {
	if len(texts) == 0 {
		c.line("scopes", strings.Join(scopes, " "))
		return
	}
	name := "scopes"
	for _, scope := range scopes {
		text := scope
		if texts[scope] != "" {
			text += ": " + texts[scope]
		}
		c.line(name, text)
		name = ""
	}
}

// votes writes the missing approvals and the votes and verdicts so far.
func (c card) votes(r *api.Request) {
	if r.Status == api.StatusPending {
		c.line("pending", approvalsMissing(r))
		if !r.LapsesAt.IsZero() {
			c.line("", "lapses at "+clock(r.LapsesAt))
		}
	}
	for _, v := range r.Approvals.Given {
		name := map[string]string{api.Approve: "approved by", api.Deny: "denied by"}[v.Decision]
		c.line(name, v.Person+" for "+strings.Join(v.Groups, ", ")+narrowed(v))
		c.quote("", v.Comment)
	}
	if r.Review == nil {
		return
	}
	if r.Review.ClosedAt.IsZero() {
		c.line("review", "due "+clock(r.Review.DueAt))
	}
	for _, v := range r.Review.Given {
		c.line("reviewed by", v.Person+": "+v.Verdict)
		c.quote("", v.Comment)
	}
}

// narrowed describes how an approval narrows the request.
func narrowed(v api.RecordedVote) string {
	text := ""
	if len(v.Scopes) > 0 {
		text += ", narrowed to " + strings.Join(v.Scopes, " ")
	}
	if v.TTL > 0 {
		text += ", valid " + v.TTL.String()
	}
	if v.Duration > 0 {
		text += ", collectable for " + v.Duration.String()
	}
	return text
}

// history writes the requester's earlier requests.
func (c card) history(f *api.Facts) {
	name := "last 30 days"
	if len(f.History) == 0 {
		c.line(name, "no other requests")
	}
	for i, h := range f.History {
		text := fmt.Sprintf("%s: %d requested, %d granted, %d denied", h.Entitlement, h.Asked, h.Granted, h.Denied)
		if h.Pending > 0 {
			text += fmt.Sprintf(", %d pending", h.Pending)
		}
		if i == 0 && f.HistoryPartial {
			text += "; incomplete, only the newest are counted"
		}
		c.line(name, text)
		name = ""
	}
	name = "before"
	for _, p := range f.Similar {
		c.line(name, pastOf(&p))
		name = ""
	}
}

// pastOf describes an earlier request for the same entitlement.
func pastOf(p *api.PastRequest) string {
	text := strings.Join(append([]string{clock(p.CreatedAt), p.Status}, p.Scopes...), " ")
	if p.BreakGlass {
		text += ", break-glass"
	}
	return text + ", " + collected(p.Credentials, p.MoreCredentials)
}

// collected describes how many credentials were collected.
func collected(n int, more bool) string {
	switch {
	case more:
		return fmt.Sprintf("%d or more credentials", n)
	case n == 0:
		return "no credential"
	case n == 1:
		return "1 credential"
	}
	return fmt.Sprintf("%d credentials", n)
}

func statusOf(r *api.Request) string {
	text := r.Status
	if r.BreakGlass {
		text += ", break-glass"
	}
	if r.Reuse {
		text += ", an earlier request"
	}
	return text
}

func requesterOf(r *api.Request) string {
	text := r.Requester + " (" + r.RequesterKind
	if r.Team != "" {
		text += " of " + r.Team
	}
	return text + ")"
}
