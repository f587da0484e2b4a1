package scim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
)

// A list is a list response (RFC 7644, section 3.4.2).
type list[T any] struct {
	Total     *int `json:"totalResults"`
	Resources []T  `json:"Resources"`
}

// A user has the attributes of a User (RFC 7643, section 4.1) that are of interest.
type user struct {
	ID         string      `json:"id"`
	UserName   string      `json:"userName"`
	ExternalID string      `json:"externalId"`
	Emails     []reference `json:"emails"`
	Active     *bool       `json:"active"`
	Groups     []reference `json:"groups"`
	Roles      []reference `json:"roles"`
}

// A group is a Group (RFC 7643, section 4.2).
type group struct {
	ID          string      `json:"id"`
	DisplayName string      `json:"displayName"`
	Members     []reference `json:"members"`
}

// A reference is one value of a multi-valued attribute.
type reference struct {
	Value string `json:"value"`
}

// quote returns a string of a filter, which is a JSON string (RFC 7644, section 3.4.2.2).
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	return strings.TrimSuffix(b.String(), "\n")
}

// isSegment reports whether an id can be a segment of a path. A dot segment would lead
// elsewhere, also if it is escaped (RFC 3986, section 6.2.2.2).
func isSegment(id string) bool { return id != "" && id != "." && id != ".." }

// maxFound bounds how many resources of one name a server may return.
const maxFound = "20"

// findUser returns the only user with the name.
func (s *server) findUser(ctx context.Context, name string) (u user, err error) {
	switch {
	case s.cfg.Match == "id" && !isSegment(name):
		err = membership.ErrGone
	case s.cfg.Match == "id":
		err = s.get(ctx, "/Users/"+url.PathEscape(name), url.Values{"attributes": {"id,active"}}, &u)
		if err == nil && u.ID != name {
			err = errOther
		}
	default:
		u, err = s.searchUser(ctx, name)
	}
	switch {
	case errors.Is(err, membership.ErrGone):
		return u, refused("the system has no user with the " + s.cfg.Match + " " + quote(name))
	case err != nil:
		return u, err
	case u.Active != nil && !*u.Active:
		return u, refused("the user with the " + s.cfg.Match + " " + quote(name) + " is deactivated")
	}
	return u, checkID(u.ID)
}

func (s *server) searchUser(ctx context.Context, name string) (user, error) {
	var found list[user]
	err := s.get(ctx, "/Users", url.Values{
		"filter": {s.cfg.Match + " eq " + quote(name)}, "attributes": {"id,userName,externalId,emails,active"}, "count": {maxFound},
	}, &found)
	if err != nil {
		return user{}, err
	}
	return only(found, func(u user) bool { return u.is(s.cfg.Match, name) })
}

// is reports whether the attribute of the user has the value. A server that ignores
// filters returns other users.
func (u user) is(attribute, value string) bool {
	switch attribute {
	case "userName":
		return strings.EqualFold(u.UserName, value) // RFC 7643, section 4.1.1: not case exact
	case "externalId":
		return u.ExternalID == value
	case "emails":
		return slices.ContainsFunc(u.Emails, func(e reference) bool { return strings.EqualFold(e.Value, value) })
	}
	return false
}

// only returns the only resource of a complete list that matches. Others may be there: a
// server ignores the case of names, or the filter.
func only[T any](found list[T], matches func(T) bool) (one T, err error) {
	if found.Total == nil {
		return one, errUnreadable
	}
	if *found.Total == 0 && len(found.Resources) == 0 {
		return one, membership.ErrGone
	}
	matching := slices.DeleteFunc(slices.Clone(found.Resources), func(r T) bool { return !matches(r) })
	switch {
	case *found.Total != len(found.Resources) || len(matching) > 1:
		return one, refused("the system has more than one of this name")
	case len(matching) == 0:
		return one, errOther
	}
	return matching[0], nil
}

// findGroup returns the only group of the spec.
func (s *server) findGroup(ctx context.Context, of *Spec) (g group, err error) {
	if of.GroupID != "" {
		err = s.get(ctx, "/Groups/"+url.PathEscape(of.GroupID), url.Values{"attributes": {"id,displayName"}}, &g)
		if err == nil && g.ID != of.GroupID {
			err = errOther
		}
	} else {
		var found list[group]
		err = s.get(ctx, "/Groups", url.Values{
			"filter": {"displayName eq " + quote(of.Group)}, "attributes": {"id,displayName"}, "count": {maxFound},
		}, &found)
		if err == nil {
			g, err = only(found, func(g group) bool { return g.DisplayName == of.Group })
		}
	}
	if errors.Is(err, membership.ErrGone) {
		return g, refused("the system has no group " + quote(of.Group+of.GroupID))
	}
	if err != nil {
		return g, err
	}
	return g, checkID(g.ID)
}

// checkID refuses an id that is no stable identifier of reasonable size.
func checkID(id string) error {
	if !isSegment(id) || len(id) > maxName {
		return errUnreadable
	}
	return nil
}

// refused returns a refusal that the requester may read.
func refused(detail string) error {
	return &broker.Refusal{Err: broker.ErrIssuerRefused, Detail: detail}
}

// groupHas reads the members of a group.
func (s *server) groupHas(ctx context.Context, p membership.Place) (bool, error) {
	var g group
	if err := s.get(ctx, "/Groups/"+url.PathEscape(p.Group), url.Values{"attributes": {"id,members"}}, &g); err != nil {
		return false, err
	}
	if g.ID != p.Group {
		return false, errOther
	}
	return contains(g.Members, p.Member), nil
}

// userHas reads the groups or the roles of a user. A user that no longer exists has none.
func (s *server) userHas(ctx context.Context, p membership.Place, attribute string) (bool, error) {
	var u user
	err := s.get(ctx, "/Users/"+url.PathEscape(p.Member), url.Values{"attributes": {"id," + attribute}}, &u)
	switch {
	case errors.Is(err, membership.ErrGone):
		return false, nil
	case err != nil:
		return false, err
	case u.ID != p.Member:
		return false, errOther
	}
	if attribute == "roles" {
		return contains(u.Roles, p.Group), nil
	}
	return contains(u.Groups, p.Group), nil
}

// filterHas has the server look for the member.
func (s *server) filterHas(ctx context.Context, p membership.Place) (bool, error) {
	var found list[group]
	err := s.get(ctx, "/Groups", url.Values{
		"filter": {fmt.Sprintf("id eq %s and members eq %s", quote(p.Group), quote(p.Member))}, "attributes": {"id"}, "count": {maxFound},
	}, &found)
	if err != nil {
		return false, err
	}
	_, err = only(found, func(g group) bool { return g.ID == p.Group })
	if errors.Is(err, membership.ErrGone) {
		return false, nil
	}
	return err == nil, err
}

func contains(list []reference, value string) bool {
	return slices.Contains(list, reference{value})
}
