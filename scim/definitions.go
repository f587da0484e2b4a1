package scim

// The schemas of RFC 7643 that the broker has. It stores no password, so that the
// attribute is missing here and ignored in requests.

func text(name, about string) *attribute {
	return &attribute{name: name, kind: kindString, about: about}
}

func exact(name, about string) *attribute {
	return &attribute{name: name, kind: kindString, exact: true, about: about}
}

func link(name, about string, to ...string) *attribute {
	return &attribute{name: name, kind: kindReference, exact: true, references: to, about: about}
}

func flag(name, about string) *attribute {
	return &attribute{name: name, kind: kindBoolean, about: about}
}

func complexOf(name, about string, sub ...*attribute) *attribute {
	return &attribute{name: name, kind: kindComplex, about: about, sub: sub}
}

// plural returns a multi-valued attribute with the default sub-attributes (RFC 7643,
// section 2.4).
func plural(name, about string, value *attribute, types ...string) *attribute {
	kind := text("type", "A label of the function of the value, such as work or home.")
	kind.canonical = types
	return &attribute{name: name, kind: kindComplex, multi: true, about: about, sub: attributes{
		value, text("display", "A name of the value for people."), kind,
		flag("primary", "Reports whether this is the preferred value. At most one value is."),
	}}
}

func (a *attribute) with(mutability, returned, uniqueness string) *attribute {
	a.mutability, a.returned, a.uniqueness = mutability, returned, uniqueness
	return a
}

func (a *attribute) must() *attribute {
	a.required = true
	return a
}

func (a *attribute) readOnlyParts() *attribute {
	a.mutability = "readOnly"
	for _, s := range a.sub {
		s.mutability = "readOnly"
	}
	return a
}

// common are the attributes of every resource (RFC 7643, section 3.1).
var common = attributes{
	(&attribute{name: "schemas", kind: kindReference, multi: true, exact: true}).with("readOnly", "always", ""),
	exact("id", "").with("readOnly", "always", "server"),
	exact("externalId", ""),
	complexOf("meta", "",
		exact("resourceType", ""),
		&attribute{name: "created", kind: kindDateTime},
		&attribute{name: "lastModified", kind: kindDateTime},
		link("location", "", "uri"),
		exact("version", ""),
	).readOnlyParts(),
}

var userSchema = &schema{id: urnUser, name: "User", about: "User Account", attributes: attributes{
	text("userName", "The unique name of the user at the provider, compared without its case.").with("", "", "server").must(),
	complexOf("name", "The components of the user's name.",
		text("formatted", "The full name, formatted for display."),
		text("familyName", "The family name."),
		text("givenName", "The given name."),
		text("middleName", "The middle names."),
		text("honorificPrefix", "The title before the name."),
		text("honorificSuffix", "The suffix after the name."),
	),
	text("displayName", "The name of the user for display."),
	text("nickName", "The casual name of the user."),
	link("profileUrl", "The URL of the user's profile.", "external"),
	text("title", "The user's title, such as Vice President."),
	text("userType", "The relationship of the organization to the user, such as Contractor."),
	text("preferredLanguage", "The user's preferred languages (RFC 7231, section 5.3.5)."),
	text("locale", "The user's location, for formats of currency and dates."),
	text("timezone", "The user's time zone, such as America/Los_Angeles."),
	flag("active", "Reports whether the user may have access. If it becomes false, the user's access ends at once."),
	plural("emails", "The user's email addresses.", text("value", "An email address."), "work", "home", "other"),
	plural("phoneNumbers", "The user's phone numbers.", text("value", "A phone number."), "work", "home", "mobile", "fax", "pager", "other"),
	plural("ims", "The user's instant messaging addresses.", text("value", "An instant messaging address."), "aim", "gtalk", "icq", "xmpp", "msn", "skype", "qq", "yahoo"),
	plural("photos", "URLs of photos of the user.", link("value", "The URL of a photo.", "external"), "photo", "thumbnail"),
	{name: "addresses", kind: kindComplex, multi: true, about: "The user's physical addresses.", sub: attributes{
		text("formatted", "The full address, formatted for display."),
		text("streetAddress", "The street address."),
		text("locality", "The city or locality."),
		text("region", "The state or region."),
		text("postalCode", "The postal code."),
		text("country", "The country (ISO 3166-1)."),
		{name: "type", kind: kindString, canonical: []string{"work", "home", "other"}, about: "A label of the function of the address."},
		flag("primary", "Reports whether this is the preferred address. At most one is."),
	}},
	complexOfMany("groups", "The groups to which the user belongs. Change the groups' members instead.",
		exact("value", "The id of the group."),
		link("$ref", "The URL of the group.", "User", "Group"),
		text("display", "The name of the group for people."),
		&attribute{name: "type", kind: kindString, canonical: []string{"direct", "indirect"}, about: "How the user is a member."},
	).readOnlyParts(),
	plural("entitlements", "The user's entitlements at the client. The broker does not read them.", text("value", "An entitlement.")),
	plural("roles", "The user's roles at the client. The broker does not read them.", text("value", "A role.")),
	plural("x509Certificates", "Certificates of the user. The broker does not read them.", &attribute{name: "value", kind: kindBinary, exact: true, about: "A certificate in DER, in base64."}),
}}

func complexOfMany(name, about string, sub ...*attribute) *attribute {
	a := complexOf(name, about, sub...)
	a.multi = true
	return a
}

var groupSchema = &schema{id: urnGroup, name: "Group", about: "Group", attributes: attributes{
	text("displayName", "The name of the group. It is unique at the provider, compared without its case.").with("", "", "server").must(),
	complexOfMany("members", "The members of the group.",
		exact("value", "The id of the member.").with("immutable", "", ""),
		link("$ref", "The URL of the member.", "User", "Group").with("immutable", "", ""),
		(&attribute{name: "type", kind: kindString, canonical: []string{"User", "Group"}, about: "The type of the member. Groups are not accepted as members."}).with("immutable", "", ""),
	),
}}

var enterpriseSchema = &schema{id: urnEnterprise, name: "EnterpriseUser", about: "Enterprise User", attributes: attributes{
	text("employeeNumber", "The number that the organization assigned to the user."),
	text("costCenter", "The name of a cost center."),
	text("organization", "The name of an organization."),
	text("division", "The name of a division."),
	text("department", "The name of a department."),
	complexOf("manager", "The user's manager, who approves what policy submits to the manager.",
		exact("value", "The id of the manager's user."),
		link("$ref", "The URL of the manager's user.", "User"),
		text("displayName", "The name of the manager for people.").with("readOnly", "", ""),
	),
}}

// accessSchema is an extension of the broker: RFC 7643 has no end of a user's access.
var accessSchema = &schema{id: urnAccess, name: "Access", about: "Temporary access", attributes: attributes{
	{name: "ends", kind: kindDateTime, about: "When the user's access ends, for example with a contract. No one has to act then."},
	exact("sponsor", "The group or person of the broker that is responsible for the user."),
}}

var (
	userType  = newResourceType("User", "Users", "User Account", userSchema, enterpriseSchema, accessSchema)
	groupType = newResourceType("Group", "Groups", "Group", groupSchema)
)

func newResourceType(name, endpoint, about string, core *schema, extensions ...*schema) *resourceType {
	return &resourceType{name: name, endpoint: endpoint, about: about, core: core, extensions: extensions,
		root: append(append(attributes{}, common...), core.attributes...)}
}
