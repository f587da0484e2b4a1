package scim

import (
	"errors"
	"net/http"
	"slices"
	"sync"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
)

// groups serves the endpoint Groups.
type groups struct{}

var _ kindOfResource = groups{}

// maxListed bounds the members that a list of groups shows; a page is shorter then.
const maxListed = 50_000

// groupDocument returns a group and the ids of its members from a client's
// representation.
func groupDocument(object map[string]any) (Document, []string, error) {
	value, _, err := member(object, "members")
	if err != nil {
		return nil, nil, err
	}
	ids, err := memberIDs(value)
	if err != nil {
		return nil, nil, err
	}
	rest := map[string]any{}
	for name, v := range object {
		if a := groupType.root.find(name); a == nil || a.name != "members" {
			rest[name] = v
		}
	}
	d, err := groupType.document(rest)
	return d, ids, err
}

func (groups) create(r *request, object map[string]any) (answer, error) {
	d, ids, err := groupDocument(object)
	if err != nil {
		return answer{}, err
	}
	c, err := groupChange(nil, d, &MemberChange{Add: set(ids)})
	if err != nil {
		return answer{}, err
	}
	g, err := r.h.cfg.Directory.CreateGroup(r.Context(), r.caller, r.source, c)
	if err != nil {
		return answer{}, err
	}
	return r.group(http.StatusCreated, g), nil
}

func set(ids []string) map[string]bool {
	all := make(map[string]bool, len(ids))
	for _, id := range ids {
		all[id] = true
	}
	return all
}

// groupChange returns what the directory stores. An id that is not one of a user makes
// the whole change fail, except for members that are to leave.
func groupChange(before, d Document, m *MemberChange) (c directory.GroupChange, err error) {
	c.Name, _ = d["displayName"].(string)
	c.ExternalID, _ = d["externalId"].(string)
	c.Clear, c.Changed = m.Clear, changed(before, d)
	for id := range m.Add {
		parsed, err := broker.ParseDirectoryUserID(id)
		if err != nil {
			return c, directory.ErrMember
		}
		c.Add = append(c.Add, parsed)
	}
	for id := range m.Remove {
		if parsed, err := broker.ParseDirectoryUserID(id); err == nil {
			c.Remove = append(c.Remove, parsed)
		}
	}
	return c, nil
}

func (groups) get(r *request, id string) (answer, error) {
	g, err := r.loadGroup(id)
	if err != nil {
		return answer{}, err
	}
	if r.unchanged(g.Tag) {
		return answer{status: http.StatusNotModified, tag: entityTag(g.Tag)}, nil
	}
	return r.group(http.StatusOK, g), nil
}

func (r *request) loadGroup(id string) (*directory.Group, error) {
	parsed, err := broker.ParseDirectoryGroupID(id)
	if err != nil {
		return nil, errNoResource
	}
	return r.h.cfg.Directory.Group(r.source, parsed)
}

func (groups) replace(r *request, id string, object map[string]any) (answer, error) {
	after, ids, err := groupDocument(object)
	if err != nil {
		return answer{}, err
	}
	g, err := r.changeGroup(id, func(Document, *directory.Group) (Document, *MemberChange, error) {
		return after, &MemberChange{Clear: true, Add: set(ids)}, nil
	})
	if err != nil {
		return answer{}, err
	}
	return r.group(http.StatusOK, g), nil
}

// patch answers with the group only if the client names attributes (RFC 7644, section
// 3.5.2): a large group has many members.
func (groups) patch(r *request, id string, ops []operation) (answer, error) {
	g, err := r.changeGroup(id, func(before Document, g *directory.Group) (Document, *MemberChange, error) {
		m := newMemberChange(func() []string { return r.memberIDs(g.ID) })
		p := patcher{resource: groupType, doc: before.clone(), members: m}
		return p.doc, m, p.patch(ops)
	})
	if err != nil {
		return answer{}, err
	}
	if len(r.query.attributes) == 0 {
		return answer{status: http.StatusNoContent, tag: entityTag(g.Tag), location: r.h.location("Groups", id)}, nil
	}
	return r.group(http.StatusOK, g), nil
}

// changeGroup reads a group, changes it and stores it, like changeUser.
func (r *request) changeGroup(id string, change func(Document, *directory.Group) (Document, *MemberChange, error)) (*directory.Group, error) {
	for try := 1; ; try++ {
		g, err := r.loadGroup(id)
		if err != nil {
			return nil, err
		}
		if err := r.checkMatch(g.Tag); err != nil {
			return nil, err
		}
		before := groupAttributes(g)
		after, m, err := change(before, g)
		if err != nil {
			return nil, err
		}
		c, err := groupChange(before, after, m)
		if err != nil {
			return nil, err
		}
		if len(c.Changed) == 0 && !c.Clear && len(c.Add)+len(c.Remove) == 0 {
			return g, nil
		}
		changed, err := r.h.cfg.Directory.ReplaceGroup(r.Context(), r.caller, r.source, g, c)
		if errors.Is(err, directory.ErrVersion) && try < maxRetries && r.Header.Get("If-Match") == "" {
			continue
		}
		return changed, err
	}
}

func (groups) delete(r *request, id string) (answer, error) {
	g, err := r.loadGroup(id)
	if err != nil {
		return answer{}, err
	}
	version := 0
	if r.Header.Get("If-Match") != "" {
		if err := r.checkMatch(g.Tag); err != nil {
			return answer{}, err
		}
		version = g.Version
	}
	return answer{status: http.StatusNoContent}, r.h.cfg.Directory.DeleteGroup(r.Context(), r.caller, r.source, g.ID, version)
}

func groupAttributes(g *directory.Group) Document {
	d := Document{"displayName": g.Name}
	if g.ExternalID != "" {
		d["externalId"] = g.ExternalID
	}
	return d
}

func (r *request) memberIDs(id broker.DirectoryGroupID) (ids []string) {
	for _, member := range r.h.cfg.Directory.Members(r.source, id) {
		ids = append(ids, member.String())
	}
	return ids
}

// group returns the answer with a group.
func (r *request) group(status int, g *directory.Group) answer {
	d := r.showGroup(g)
	if r.query.wants("members") {
		if list := r.members(g); len(list) > 0 {
			d["members"] = list
		}
	}
	return answer{status: status, body: r.query.project(groupType, d), tag: entityTag(g.Tag), location: r.h.location("Groups", g.ID.String())}
}

func (r *request) showGroup(g *directory.Group) Document {
	d := groupAttributes(g)
	d["schemas"], d["id"] = []any{urnGroup}, g.ID.String()
	d["meta"] = r.meta("Group", "Groups", g.ID.String(), entityTag(g.Tag), g.Created, g.Modified)
	return d
}

func (r *request) members(g *directory.Group) (list []any) {
	for _, id := range r.memberIDs(g.ID) {
		m := memberOf(id)
		m["$ref"] = r.h.location("Users", id)
		list = append(list, m)
	}
	return list
}

func (groups) list(r *request, q query) (answer, error) {
	ids := r.h.cfg.Directory.GroupIDs(r.source)
	var f *filter
	ctx := r.Context()
	if q.filter != "" {
		var err error
		if f, err = groupType.parseFilter(q.filter); err != nil {
			return answer{}, err
		}
		found, indexed := f.candidates(r.findGroup)
		if indexed {
			ids = groupIDs(found)
		} else {
			scan, done, err := r.scan()
			if err != nil {
				return answer{}, err
			}
			defer done()
			ctx = scan
		}
	}
	total, listed := 0, 0
	var page []any
	for _, id := range ids {
		if err := r.inTime(ctx); err != nil {
			return answer{}, err
		}
		g, err := r.h.cfg.Directory.Group(r.source, id)
		if err != nil {
			continue // deleted meanwhile
		}
		d := r.showGroup(g)
		if f != nil {
			d["members"] = lazyList(sync.OnceValue(func() []any { return r.members(g) }))
			matches := f.matches(d)
			if delete(d, "members"); !matches {
				continue
			}
		}
		if total++; total < q.start || len(page) >= q.count || listed > maxListed {
			continue
		}
		if q.wants("members") {
			if list := r.members(g); len(list) > 0 {
				d["members"] = list
				listed += len(list)
			}
		}
		page = append(page, q.project(groupType, d))
	}
	return listOf(total, q.start, page), nil
}

func groupIDs(texts []string) (ids []broker.DirectoryGroupID) {
	for _, text := range texts {
		if id, err := broker.ParseDirectoryGroupID(text); err == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// findGroup answers comparisons with the attributes that identify a group.
func (r *request) findGroup(f *filter) (id string, found, indexed bool) {
	if text, ok := f.equals("id"); ok {
		return text, true, true
	}
	for _, attribute := range []string{"displayName", "externalId"} {
		if text, ok := f.equals(attribute); ok {
			id, found := r.h.cfg.Directory.FindGroup(r.source, attribute, text)
			return id.String(), found, true
		}
	}
	return "", false, false
}
