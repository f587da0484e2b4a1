package tickets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// A GenericConfig describes any system that answers with JSON about a ticket.
type GenericConfig struct {
	Host   // URL has {ticket} once, in its path or query
	Fields Fields
}

// Fields are JSON pointers (RFC 6901) into an answer. ID and State are required.
type Fields struct {
	ID, Title, State, Assignee, From, Until string
}

// ticketPlace is where the URL of a generic tracker has the ticket's id.
const ticketPlace = "{ticket}"

type generic struct {
	cfg           GenericConfig
	before, after string // the URL, around the id
	inQuery       bool
	client        *client
}

// NewGeneric returns the source of a system that is none of the other kinds.
func NewGeneric(c GenericConfig) (Source, error) {
	before, after, found := strings.Cut(c.URL, ticketPlace)
	host, err := url.Parse(before)
	if err != nil || !found || strings.Contains(after, ticketPlace) || host.Path == "" {
		return nil, fmt.Errorf("write the ticket's place once in the path or the query, as in https://tracker.acme.test/tickets/%s", ticketPlace)
	}
	for name, pointer := range map[string]string{
		"id": c.Fields.ID, "title": c.Fields.Title, "state": c.Fields.State, "assignee": c.Fields.Assignee, "window_from": c.Fields.From, "window_until": c.Fields.Until,
	} {
		if pointer != "" && !strings.HasPrefix(pointer, "/") {
			return nil, fmt.Errorf("fields.%s is not a JSON pointer (RFC 6901): write /%s", name, pointer)
		}
	}
	if c.Fields.ID == "" || c.Fields.State == "" {
		return nil, errors.New("fields needs id and state: without the id, an answer about another ticket would count")
	}
	c.Host.URL = before
	client, err := newClient(c.Host)
	if err != nil {
		return nil, err
	}
	return &generic{cfg: c, before: before, after: after, inQuery: strings.Contains(before, "?"), client: client}, nil
}

// Fetch implements Source.
func (g *generic) Fetch(ctx context.Context, id string) (Answer, error) {
	escaped := url.PathEscape(id)
	if g.inQuery {
		escaped = url.QueryEscape(id)
	}
	if id == "." || id == ".." {
		return Answer{}, ErrNoTicket
	}
	var answer any
	if err := g.client.get(ctx, g.before+escaped+g.after, nil, &answer); err != nil {
		return Answer{}, err
	}
	f := g.cfg.Fields
	a := Answer{ID: textAt(answer, f.ID), Title: textAt(answer, f.Title), Status: textAt(answer, f.State)}
	if a.Status == "" {
		return Answer{}, unexpected("state")
	}
	a.Open = a.Status == "open"
	a.Assignees = textsAt(answer, f.Assignee)
	a.Assignee = strings.Join(a.Assignees, ", ")
	a.From, a.Until = timeAt(answer, f.From), timeAt(answer, f.Until)
	return a, nil
}

// at returns the value of a JSON pointer; nil if there is none.
func at(v any, pointer string) any {
	if pointer == "" {
		return nil
	}
	for token := range strings.SplitSeq(pointer[1:], "/") {
		token = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
		switch in := v.(type) {
		case map[string]any:
			v = in[token]
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(in) {
				return nil
			}
			v = in[i]
		default:
			return nil
		}
	}
	return v
}

// textAt returns a string, or a number as it would be written.
func textAt(v any, pointer string) string {
	switch found := at(v, pointer).(type) {
	case string:
		return found
	case json.Number:
		return found.String()
	case bool:
		return strconv.FormatBool(found)
	}
	return ""
}

// textsAt returns a string, or the strings of a list.
func textsAt(v any, pointer string) (texts []string) {
	list, isList := at(v, pointer).([]any)
	if !isList {
		if text := textAt(v, pointer); text != "" {
			return []string{text}
		}
		return nil
	}
	for _, item := range list[:min(len(list), maxAssignees)] {
		if text, ok := item.(string); ok && text != "" {
			texts = append(texts, text)
		}
	}
	return texts
}

func timeAt(v any, pointer string) time.Time {
	at, err := time.Parse(time.RFC3339Nano, textAt(v, pointer))
	if err != nil {
		return time.Time{}
	}
	return at
}
