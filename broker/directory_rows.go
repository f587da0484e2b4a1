package broker

import "time"

// The rows of the directory: people and groups as their provider's directory provisions
// them. Package broker/directory has their flows.

// DirectoryUserID and DirectoryGroupID are IDs that the broker makes. An ID is never
// used again, so an ID that a client remembers can't come to name another person.
type (
	DirectoryUserID  ID
	DirectoryGroupID ID
)

const (
	directoryUserPrefix  = "usr_"
	directoryGroupPrefix = "grp_"
	scimTokenPrefix      = "stk_"
)

// NewDirectoryUserID returns a new ID. It is safe for concurrent use.
func NewDirectoryUserID(now time.Time) DirectoryUserID { return DirectoryUserID(newID(now)) }

// NewDirectoryGroupID returns a new ID. It is safe for concurrent use.
func NewDirectoryGroupID(now time.Time) DirectoryGroupID { return DirectoryGroupID(newID(now)) }

// NewSCIMTokenID returns a new ID. It is safe for concurrent use.
func NewSCIMTokenID(now time.Time) SCIMTokenID { return SCIMTokenID(newID(now)) }

func (id DirectoryUserID) String() string  { return encodeID(directoryUserPrefix, id) }
func (id DirectoryGroupID) String() string { return encodeID(directoryGroupPrefix, id) }
func (id SCIMTokenID) String() string      { return encodeID(scimTokenPrefix, id) }

// ParseDirectoryUserID parses the text of an ID. It returns ErrNotFound for any other
// text.
func ParseDirectoryUserID(s string) (DirectoryUserID, error) {
	id, err := parseID(directoryUserPrefix, s)
	return DirectoryUserID(id), err
}

// ParseDirectoryGroupID parses the text of an ID. It returns ErrNotFound for any other
// text.
func ParseDirectoryGroupID(s string) (DirectoryGroupID, error) {
	id, err := parseID(directoryGroupPrefix, s)
	return DirectoryGroupID(id), err
}

// ParseSCIMTokenID parses the text of an ID. It returns ErrNotFound for any other text.
func ParseSCIMTokenID(s string) (SCIMTokenID, error) {
	id, err := parseID(scimTokenPrefix, s)
	return SCIMTokenID(id), err
}

func (DirectoryUserID) isKey()    {}
func (DirectoryGroupID) isKey()   {}
func (DirectoryMemberKey) isKey() {}
func (SCIMTokenID) isKey()        {}

// A DirectoryUser is a user that a source provisions.
type DirectoryUser struct {
	ID         DirectoryUserID
	Source     string // the name of the source in the operator's file
	Person     string // "<provider>/<sub>"; empty: the attribute with the sub is missing
	UserName   string
	ExternalID string // of the client
	Manager    string // as the client names the manager
	Active     bool
	Document   []byte // all attributes, as the protocol stores them
	Version    int    // from 1
	Created    time.Time
	Modified   time.Time
	Ends       time.Time // of the access; zero: none is known
	Sponsor    string    // a group or a person
	Deleted    time.Time // the row has no personal data any more, and is swept
}

// Key implements Row.
func (u *DirectoryUser) Key() Key { return u.ID }

// A DirectoryGroup is a group that a source provisions.
type DirectoryGroup struct {
	ID         DirectoryGroupID
	Source     string
	Name       string
	ExternalID string
	Version    int // from 1
	Created    time.Time
	Modified   time.Time
	Deleted    time.Time

	// Formerly are the names by which claims meant the group before Renamed, so that a restart
	// continues what the end of a name ends.
	Formerly []string
	Renamed  time.Time
}

// Key implements Row.
func (g *DirectoryGroup) Key() Key { return g.ID }

// A DirectoryMemberKey names the membership of a user in a group.
type DirectoryMemberKey struct {
	Group DirectoryGroupID
	User  DirectoryUserID
}

// A DirectoryMember is a membership. Its row is kept for a while after the member has
// left, so that a restart continues what the end of a membership ends.
type DirectoryMember struct {
	DirectoryMemberKey
	Since time.Time
	Left  time.Time // zero: a member
	As    []string  // of a former member: the names by which claims meant the group
}

// Key implements Row.
func (m *DirectoryMember) Key() Key { return m.DirectoryMemberKey }

// MemberLeftFor is how long the row of a former member is kept.
const MemberLeftFor = time.Hour

// A SCIMTokenID names a token of a SCIM client.
type SCIMTokenID ID

// A SCIMToken is the record of a token that the broker signed for a client. The token
// counts while its row does. It is not stored.
type SCIMToken struct {
	ID      SCIMTokenID
	Source  string
	By      string
	Created time.Time
	Expires time.Time
	Revoked time.Time // zero: in force
}

// Key implements Row.
func (t *SCIMToken) Key() Key { return t.ID }

// A DirectoryPerson is what a directory states about a person.
type DirectoryPerson struct {
	Source  string   // "scim:corp"
	Groups  []string // the names that claims would have
	Manager string   // "<provider>/<sub>"; empty: none

	// Memberships are the keys of the groups' rows, by name.
	Memberships map[string]DirectoryMemberKey
}

// A Directory knows people and their groups at once, before their next login. It is safe
// for concurrent use.
type Directory interface {
	// Person returns what the directory states about a person. It returns false if no
	// directory has the person: then the claims of the provider count.
	Person(id string) (DirectoryPerson, bool)
}
