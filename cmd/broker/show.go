package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/api"
)

// How a request is shown to people, in a terminal.

// plainly makes text of others safe to show on a terminal, in one line: what
// would move the cursor, begin a line, change colours or turn the direction of
// writing is shown as a code.
func plainly(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}

// A card is what is shown of one thing: lines of a name and a text, to a
// tabwriter. Every text passes plainly, so that none of others' can pretend to
// be a line of ours.
type card struct{ w io.Writer }

// cardWidth is how wide texts are: with the longest name they fit in 80 columns.
const cardWidth = 64

// line shows a text in as many lines as it takes; none if it is empty.
func (c card) line(name, text string) { c.rows(name, wrap(plainly(text), cardWidth)) }

// quote shows a text of others as theirs, line by line.
func (c card) quote(name, text string) {
	const mark = "| "
	var rows []string
	for line := range strings.Lines(text) {
		for _, part := range wrap(plainly(strings.TrimSuffix(line, "\n")), cardWidth-len(mark)) {
			rows = append(rows, mark+part)
		}
	}
	c.rows(name, rows)
}

func (c card) rows(name string, rows []string) {
	for _, row := range rows {
		fmt.Fprintf(c.w, "%s\t%s\n", name, row)
		name = ""
	}
}

// wrap breaks a text at spaces. It keeps the spaces that a line begins with, and
// breaks no word: what is longer may have to be copied.
func wrap(text string, width int) (rows []string) {
	indent := text[:len(text)-len(strings.TrimLeft(text, " "))]
	row := ""
	for _, word := range strings.Fields(text) {
		switch {
		case row == "":
			row = indent + word
		case utf8.RuneCountInString(row)+1+utf8.RuneCountInString(word) > width:
			rows = append(rows, row)
			row = indent + word
		default:
			row += " " + word
		}
	}
	if row != "" {
		rows = append(rows, row)
	}
	return rows
}

// writeRequest shows a request whole. To those who decide on it, the broker
// tells what the page of it shows as well, and so does this.
func writeRequest(w io.Writer, r *api.Request) {
	c, f := card{w}, r.Facts
	if f == nil {
		f = &api.Facts{}
	}
	c.line("request", r.ID)
	if r.ID == "" {
		c.line("dry run", "nothing was filed")
	}
	c.line("status", statusOf(r))
	c.line("requester", requesterOf(r))
	c.line("proved by", provedBy(f))
	c.line("accountable", strings.Join(r.Accountable, ", "))
	if r.Justification == "" && r.Facts != nil {
		c.line("why", "no reason was given")
	}
	c.quote("why", r.Justification)
	c.line("ticket", strings.TrimSpace(r.Ticket+" "+f.TicketURL))
	c.line("entitlement", entitlementOf(r, f))
	c.scopes(r.Scopes, f.ScopeTexts)
	for _, name := range slices.Sorted(maps.Keys(r.Parameters)) {
		c.quote(name, r.Parameters[name])
	}
	c.line("ttl", fmt.Sprintf("%s a credential, for %s", r.TTL, r.Duration))
	c.line("ending it", endings[f.Revocation])
	c.quote("lets them", f.Effect)
	c.line("extends", r.Extends)
	if !r.NotBefore.IsZero() {
		c.line("not before", clock(r.NotBefore))
	}
	c.people(r)
	c.grant(r.Grant)
	for _, reason := range r.Decision.Reasons {
		c.line("because", reason)
	}
	c.line("policies", strings.Join(r.Decision.Policies, " "))
	if r.Facts != nil {
		c.past(f)
		c.line("digest", r.Digest)
	}
}

// writeOutcome shows what came of what somebody said to a request. What it is,
// they have seen.
func writeOutcome(w io.Writer, r *api.Request) {
	c := card{w}
	c.line("request", r.ID)
	c.line("status", statusOf(r))
	c.people(r)
	c.grant(r.Grant)
}

func (c card) grant(g *api.Grant) {
	if g != nil {
		c.line("granted", strings.TrimSpace(strings.Join(g.Scopes, " ")+" "+g.TTL.String())+" a credential")
		c.line("collect until", clock(g.CollectUntil))
	}
}

// endings say what ending a credential early means.
var endings = map[string]string{
	"immediate":   "it can be taken back at once",
	"at_expiry":   "it can't be taken back: only time ends it",
	"at_rotation": "it goes on working until the system rotates its password",
	"never":       "it is not short-lived: nothing takes it back",
}

func provedBy(f *api.Facts) string {
	if f.Proof.Method == "" {
		return ""
	}
	text := f.Proof.Method
	if f.From != "" {
		text += ", from " + f.From
	}
	return text + ", good until " + clock(f.Proof.ExpiresAt)
}

func entitlementOf(r *api.Request, f *api.Facts) string {
	text := r.Entitlement
	if f.Description != "" {
		text += ": " + f.Description
	}
	if f.Owner != "" {
		text += " (owned by " + f.Owner + ")"
	}
	return text
}

// scopes shows scopes with what they mean, one a line; without, in one line.
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

// people shows who has to say yes, and what people said.
func (c card) people(r *api.Request) {
	if r.Status == api.StatusPending {
		waits := waitsFor(r)
		if !r.LapsesAt.IsZero() {
			waits += ", until " + clock(r.LapsesAt)
		}
		c.line("waits", waits)
	}
	for _, v := range r.Approvals.Given {
		name := map[string]string{api.Approve: "approved by", api.Deny: "denied by"}[v.Decision]
		c.line(name, v.Person+" as "+strings.Join(v.Groups, ", ")+narrowed(v))
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

// narrowed says to what an approval narrowed the request.
func narrowed(v api.RecordedVote) string {
	text := ""
	if len(v.Scopes) > 0 {
		text += ", for " + strings.Join(v.Scopes, " ")
	}
	if v.TTL > 0 {
		text += ", " + v.TTL.String() + " a credential"
	}
	if v.Duration > 0 {
		text += ", collected for " + v.Duration.String()
	}
	return text
}

// past shows what the same caller asked for before.
func (c card) past(f *api.Facts) {
	const name = "in 30 days"
	if len(f.History) == 0 {
		c.line(name, "it asked for nothing before")
	}
	for i, p := range f.History {
		text := fmt.Sprintf("%s: asked %d, granted %d, denied %d", p.Entitlement, p.Asked, p.Granted, p.Denied)
		if p.Pending > 0 {
			text += fmt.Sprintf(", waiting %d", p.Pending)
		}
		if i == 0 && f.HistoryPartial {
			text += "; at least: only the newest are counted"
		}
		c.line(map[bool]string{true: name}[i == 0], text)
	}
}

func statusOf(r *api.Request) string {
	text := r.Status
	if r.BreakGlass {
		text += ", emergency use"
	}
	if r.Reuse {
		text += ", filed before"
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
