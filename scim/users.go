package scim

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
)

// users serves the endpoint Users.
type users struct{}

var _ kindOfResource = users{}

func userID(id string) (broker.DirectoryUserID, error) {
	parsed, err := broker.ParseDirectoryUserID(id)
	if err != nil {
		return parsed, errNoResource
	}
	return parsed, nil
}

func (users) create(r *request, object map[string]any) (answer, error) {
	d, err := userType.document(object)
	if err != nil {
		return answer{}, err
	}
	if d["active"] == nil {
		d["active"] = true
	}
	c, err := r.userChange(nil, d)
	if err != nil {
		return answer{}, err
	}
	row, err := r.h.cfg.Directory.CreateUser(r.Context(), r.caller, r.source, c)
	if err != nil {
		return answer{}, err
	}
	return r.user(http.StatusCreated, row, d), nil
}

// userChange returns what the directory stores of a document. before is nil for a new
// user.
func (r *request) userChange(before, d Document) (c directory.UserChange, err error) {
	c = directory.UserChange{Active: d["active"] == true, Document: d.Encode(), Changed: changed(before, d)}
	c.UserName, _ = d["userName"].(string)
	c.ExternalID, _ = d["externalId"].(string)
	if c.Subject, err = r.h.cfg.Subjects[r.source].of(d); err != nil {
		return c, err
	}
	if extension, ok := d[urnEnterprise].(Document); ok {
		if manager, ok := extension["manager"].(Document); ok {
			c.Manager, _ = manager["value"].(string)
		}
	}
	if extension, ok := d[urnAccess].(Document); ok {
		c.Sponsor, _ = extension["sponsor"].(string)
		if text, ok := extension["ends"].(string); ok {
			if c.Ends, err = time.Parse(time.RFC3339, text); err != nil {
				return c, bad(typeInvalidValue, "ends is not a time such as 2026-12-31T23:00:00Z")
			}
		}
	}
	return c, nil
}

// changed returns the names of the attributes that differ.
func changed(before, after Document) (names []string) {
	all := maps.Clone(before)
	if all == nil {
		all = Document{}
	}
	maps.Copy(all, after)
	for name := range all {
		if reflect.DeepEqual(before[name], after[name]) {
			continue
		}
		if name == urnEnterprise || name == urnAccess {
			b, _ := before[name].(Document)
			a, _ := after[name].(Document)
			names = append(names, changed(b, a)...)
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (users) get(r *request, id string) (answer, error) {
	row, d, err := r.loadUser(id)
	if err != nil {
		return answer{}, err
	}
	if tag := r.h.cfg.Directory.UserTag(row); r.unchanged(tag) {
		return answer{status: http.StatusNotModified, tag: entityTag(tag)}, nil
	}
	return r.user(http.StatusOK, row, d), nil
}

func (r *request) loadUser(id string) (*broker.DirectoryUser, Document, error) {
	parsed, err := userID(id)
	if err != nil {
		return nil, nil, err
	}
	row, err := r.h.cfg.Directory.User(r.Context(), r.source, parsed)
	if err != nil {
		return nil, nil, err
	}
	d, err := Decode(row.Document)
	return row, d, err
}

func (users) replace(r *request, id string, object map[string]any) (answer, error) {
	after, err := userType.document(object)
	if err != nil {
		return answer{}, err
	}
	return r.changeUser(id, func(before Document) (Document, error) {
		d := after.clone()
		if d["active"] == nil && before["active"] != nil {
			d["active"] = before["active"] // a client that leaves it out does not mean to activate the user
		}
		return d, nil
	})
}

func (users) patch(r *request, id string, ops []operation) (answer, error) {
	return r.changeUser(id, func(before Document) (Document, error) {
		p := patcher{resource: userType, doc: before.clone()}
		return p.doc, p.patch(ops)
	})
}

// maxRetries is how often a change is made again because another one came first.
const maxRetries = 8

// changeUser reads a user, changes it and stores it. If another call changed the user in
// between, it starts again, unless the client named the version.
func (r *request) changeUser(id string, change func(before Document) (Document, error)) (answer, error) {
	for try := 1; ; try++ {
		row, before, err := r.loadUser(id)
		if err != nil {
			return answer{}, err
		}
		if err := r.checkMatch(r.h.cfg.Directory.UserTag(row)); err != nil {
			return answer{}, err
		}
		after, err := change(before)
		if err != nil {
			return answer{}, err
		}
		if reflect.DeepEqual(before, after) {
			return r.user(http.StatusOK, row, after), r.h.cfg.Directory.Repeat(r.Context(), r.caller, row)
		}
		c, err := r.userChange(before, after)
		if err != nil {
			return answer{}, err
		}
		row, err = r.h.cfg.Directory.ReplaceUser(r.Context(), r.caller, row, c)
		if errors.Is(err, directory.ErrVersion) && try < maxRetries && r.Header.Get("If-Match") == "" {
			continue
		}
		if err != nil {
			return answer{}, err
		}
		return r.user(http.StatusOK, row, after), nil
	}
}

func (users) delete(r *request, id string) (answer, error) {
	row, _, err := r.loadUser(id)
	if err != nil {
		return answer{}, err
	}
	version := 0
	if r.Header.Get("If-Match") != "" {
		if err := r.checkMatch(r.h.cfg.Directory.UserTag(row)); err != nil {
			return answer{}, err
		}
		version = row.Version
	}
	return answer{status: http.StatusNoContent}, r.h.cfg.Directory.DeleteUser(r.Context(), r.caller, r.source, row.ID, version)
}

// user returns the answer with a user.
func (r *request) user(status int, row *broker.DirectoryUser, d Document) answer {
	tag := entityTag(r.h.cfg.Directory.UserTag(row))
	return answer{status: status, body: r.query.project(userType, r.showUser(row, d, tag)), tag: tag, location: r.h.location("Users", row.ID.String())}
}

// showUser adds what only the broker writes to a document.
func (r *request) showUser(row *broker.DirectoryUser, d Document, tag string) Document {
	schemas := []any{urnUser}
	for _, extension := range []string{urnEnterprise, urnAccess} {
		if d[extension] != nil {
			schemas = append(schemas, extension)
		}
	}
	d["schemas"], d["id"] = schemas, row.ID.String()
	d["meta"] = r.meta("User", "Users", row.ID.String(), tag, row.Created, row.Modified)
	if list := r.h.cfg.Directory.GroupsOf(r.source, row.ID); len(list) > 0 {
		var groups []any
		for _, g := range list {
			groups = append(groups, Document{"value": g.ID.String(), "display": g.Name, "$ref": r.h.location("Groups", g.ID.String()), "type": "direct"})
		}
		slices.SortFunc(groups, func(a, b any) int {
			return strings.Compare(a.(Document)["value"].(string), b.(Document)["value"].(string))
		})
		d["groups"] = groups
	}
	return d
}

func (r *request) meta(resource, endpoint, id, tag string, created, modified time.Time) Document {
	return Document{
		"resourceType": resource, "location": r.h.location(endpoint, id), "version": tag,
		"created": created.UTC().Format(timeFormat), "lastModified": modified.UTC().Format(timeFormat),
	}
}

const timeFormat = "2006-01-02T15:04:05.000Z"

func (users) list(r *request, q query) (answer, error) {
	all := r.h.cfg.Directory.UserIDs(r.source)
	if q.filter == "" {
		page, err := r.userPage(r.Context(), window(all, q), q, nil)
		return listOf(len(all), q.start, page), err
	}
	f, err := userType.parseFilter(q.filter)
	if err != nil {
		return answer{}, err
	}
	if ids, indexed := f.candidates(r.findUser); indexed {
		var found []broker.DirectoryUserID
		for _, id := range ids {
			if parsed, err := broker.ParseDirectoryUserID(id); err == nil && !slices.Contains(found, parsed) {
				found = append(found, parsed)
			}
		}
		matching, err := r.userPage(r.Context(), found, q, f)
		return listOf(len(matching), q.start, window(matching, q)), err
	}
	return r.scanUsers(all, q, f)
}

// findUser answers comparisons with the attributes that identify a user.
func (r *request) findUser(f *filter) (id string, found, indexed bool) {
	if text, ok := f.equals("id"); ok {
		return text, true, true
	}
	for _, attribute := range []string{"userName", "externalId"} {
		if text, ok := f.equals(attribute); ok {
			id, found := r.h.cfg.Directory.FindUser(r.source, attribute, text)
			return id.String(), found, true
		}
	}
	return "", false, false
}

// scanUsers reads all users of the source.
func (r *request) scanUsers(all []broker.DirectoryUserID, q query, f *filter) (answer, error) {
	ctx, done, err := r.scan()
	if err != nil {
		return answer{}, err
	}
	defer done()
	total := 0
	var page []any
	for part := range slices.Chunk(all, 500) {
		matching, err := r.userPage(ctx, part, q, f)
		if late := r.inTime(ctx); late != nil {
			return answer{}, late
		}
		if err != nil {
			return answer{}, err
		}
		for _, item := range matching {
			if total++; total >= q.start && len(page) < q.count {
				page = append(page, item)
			}
		}
	}
	return listOf(total, q.start, page), nil
}

// userPage returns the users of some ids that meet a filter; nil: all.
func (r *request) userPage(ctx context.Context, ids []broker.DirectoryUserID, q query, f *filter) (page []any, err error) {
	rows, err := r.h.cfg.Directory.Users(ctx, r.source, ids)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		d, err := Decode(row.Document)
		if err != nil {
			return nil, err
		}
		shown := r.showUser(row, d, entityTag(r.h.cfg.Directory.UserTag(row)))
		if f == nil || f.matches(shown) {
			page = append(page, q.project(userType, shown))
		}
	}
	return page, nil
}
