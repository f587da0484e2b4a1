package scim

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// A query has the parameters of a list or of a single resource (RFC 7644, sections 3.4.2
// and 3.9).
type query struct {
	filter               string
	start, count         int
	attributes, excluded []string
}

// Bounds of a list.
const (
	defaultCount  = 100
	maxCount      = 200
	maxQuery      = 16 << 10 // bytes
	maxAttributes = 64       // named in one query
	maxStart      = 1 << 30
)

// parseQuery parses the parameters. Unknown ones are ignored: sorting is not supported.
func parseQuery(raw string) (q query, err error) {
	if len(raw) > maxQuery {
		return q, refuse(http.StatusRequestURITooLong, "the query is longer than %d bytes", maxQuery)
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return q, bad(typeInvalidSyntax, "the query is malformed")
	}
	for _, name := range []string{"filter", "startIndex", "count", "attributes", "excludedAttributes"} {
		if len(values[name]) > 1 {
			return q, bad(typeInvalidSyntax, "the parameter %s appears twice", name)
		}
	}
	q = query{filter: values.Get("filter"), start: 1, count: defaultCount}
	if q.start, err = number("startIndex", values.Get("startIndex"), 1); err != nil {
		return q, err
	}
	if q.count, err = number("count", values.Get("count"), defaultCount); err != nil {
		return q, err
	}
	q.attributes, q.excluded = split(values.Get("attributes")), split(values.Get("excludedAttributes"))
	return q, q.check()
}

func number(name, text string, otherwise int) (int, error) {
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n > maxStart {
		return 0, bad(typeInvalidValue, "%s is a number", name)
	}
	return n, nil
}

func split(list string) (names []string) {
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// check brings the numbers into their range (RFC 7644, section 3.4.2.4).
func (q *query) check() error {
	q.start, q.count = max(q.start, 1), min(max(q.count, 0), maxCount)
	switch {
	case len(q.attributes) > 0 && len(q.excluded) > 0:
		return bad(typeInvalidSyntax, "name attributes or excludedAttributes, not both")
	case len(q.attributes)+len(q.excluded) > maxAttributes:
		return bad(typeTooMany, "at most %d attributes", maxAttributes)
	}
	return nil
}

// searchQuery reads the body of a POST to .search (RFC 7644, section 3.4.3).
func searchQuery(object map[string]any) (q query, err error) {
	if err := checkSchemas(object, urnSearch); err != nil {
		return q, err
	}
	q = query{start: 1, count: defaultCount}
	for name, v := range object {
		list, _ := v.([]any)
		n, isNumber := v.(float64)
		switch strings.ToLower(name) {
		case "filter":
			q.filter, _ = v.(string)
		case "attributes":
			q.attributes = texts(list)
		case "excludedattributes":
			q.excluded = texts(list)
		case "startindex":
			q.start = int(min(max(n, 1), maxStart))
		case "count":
			if isNumber {
				q.count = int(min(max(n, 0), maxCount))
			}
		}
	}
	return q, q.check()
}

func texts(list []any) (names []string) {
	for _, item := range list {
		if s, ok := item.(string); ok && s != "" {
			names = append(names, s)
		}
	}
	return names
}

// A listResponse is the answer to a list (RFC 7644, section 3.4.2).
type listResponse struct {
	Schemas      []string `json:"schemas"`
	TotalResults int      `json:"totalResults"`
	StartIndex   int      `json:"startIndex"`
	ItemsPerPage int      `json:"itemsPerPage"`
	Resources    []any    `json:"Resources"`
}

func listOf(total, start int, page []any) answer {
	if page == nil {
		page = []any{}
	}
	return answer{status: http.StatusOK, body: listResponse{[]string{urnList}, total, start, len(page), page}}
}

// window returns the part of a list that a query selects.
func window[T any](list []T, q query) []T {
	from := min(q.start-1, len(list))
	return list[from:min(from+q.count, len(list))]
}

// A lookup finds a resource by a comparison that an index answers.
type lookup func(f *filter) (id string, found, indexed bool)

// candidates returns the ids of all resources that can meet a filter, if the index finds
// them.
func (f *filter) candidates(find lookup) (ids []string, indexed bool) {
	switch f.op {
	case "and":
		for _, part := range f.parts {
			if ids, indexed := part.candidates(find); indexed {
				return ids, true
			}
		}
		return nil, false
	case "or":
		for _, part := range f.parts {
			more, indexed := part.candidates(find)
			if !indexed {
				return nil, false
			}
			ids = append(ids, more...)
		}
		return ids, true
	case "eq":
		id, found, indexed := find(f)
		if found {
			ids = []string{id}
		}
		return ids, indexed
	}
	return nil, false
}

// equals returns the text that a filter compares an attribute of the core schema with.
func (f *filter) equals(attribute string) (string, bool) {
	s, ok := f.value.(string)
	return s, ok && f.attr.extension == "" && f.attr.sub == nil && !f.attr.unknown && f.attr.attr != nil && f.attr.attr.name == attribute
}

// scanFor bounds a list that reads all resources of a source.
const scanFor = 15 * time.Second

// scan takes the source's turn to read all of its resources.
func (r *request) scan() (context.Context, func(), error) {
	select {
	case r.h.scans[r.source] <- struct{}{}:
	default:
		return nil, nil, &broker.Refusal{Err: broker.ErrSlowDown, Detail: "another list of this source reads all resources: try again, or filter by userName, externalId or id", Retry: time.Second}
	}
	ctx, cancel := context.WithTimeout(r.Context(), scanFor)
	return ctx, func() { cancel(); <-r.h.scans[r.source] }, nil
}

// inTime returns an error if the time of a list is over.
func (r *request) inTime(ctx context.Context) error {
	switch {
	case r.Context().Err() != nil:
		return r.Context().Err()
	case ctx.Err() != nil:
		return bad(typeTooMany, "the list takes longer than %s: filter by an attribute that identifies resources, such as id or externalId", scanFor)
	}
	return nil
}

// project removes the attributes that a query does not want (RFC 7644, section 3.9). It
// keeps id and schemas.
func (q *query) project(t *resourceType, d Document) Document {
	switch {
	case len(q.attributes) > 0:
		out := Document{"id": d["id"], "schemas": d["schemas"]}
		for _, name := range q.attributes {
			if p, err := t.parsePath(name); err == nil && p.filter == nil {
				p.copyTo(t, out, d)
			}
		}
		return out
	case len(q.excluded) > 0:
		for _, name := range q.excluded {
			if p, err := t.parsePath(name); err == nil && p.filter == nil {
				p.removeFrom(t, d)
			}
		}
	}
	return d
}

func (p *path) copyTo(t *resourceType, out, d Document) {
	from := p.container(t, d, false)
	switch {
	case from == nil:
	case p.attr == nil:
		out[p.schema.id] = from
	case p.sub == nil:
		if v := from[p.attr.name]; v != nil {
			p.container(t, out, true)[p.attr.name] = v
		}
	default:
		if v := partOf(from[p.attr.name], p.sub.name); v != nil {
			p.container(t, out, true)[p.attr.name] = v
		}
	}
}

// partOf returns a complex value, or a list of them, with one part only.
func partOf(v any, name string) any {
	switch v := v.(type) {
	case Document:
		if part := v[name]; part != nil {
			return Document{name: part}
		}
	case []any:
		var out []any
		for _, item := range v {
			if part := partOf(item, name); part != nil {
				out = append(out, part)
			}
		}
		if out != nil {
			return out
		}
	}
	return nil
}

func (p *path) removeFrom(t *resourceType, d Document) {
	from := p.container(t, d, false)
	switch {
	case from == nil:
	case p.attr == nil:
		delete(d, p.schema.id)
	case p.attr.returned == "always":
	case p.sub == nil:
		delete(from, p.attr.name)
	default:
		switch v := from[p.attr.name].(type) {
		case Document:
			delete(v, p.sub.name)
		case []any:
			for _, item := range v {
				if part, ok := item.(Document); ok {
					delete(part, p.sub.name)
				}
			}
		}
	}
}

// wants reports whether the answer has an attribute of the core schema.
func (q *query) wants(name string) bool {
	for _, excluded := range q.excluded {
		if strings.EqualFold(excluded, name) || strings.EqualFold(excluded, urnGroup+":"+name) {
			return false
		}
	}
	if len(q.attributes) == 0 {
		return true
	}
	for _, wanted := range q.attributes {
		_, rest := groupType.cutURN(wanted)
		if first, _, _ := strings.Cut(rest, "."); strings.EqualFold(first, name) {
			return true
		}
	}
	return false
}
