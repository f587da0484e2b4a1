// Package scim is a SCIM 2.0 service provider: RFC 7643 (schema) and RFC 7644
// (protocol), both of September 2015.
//
//	schema.go     attributes and resource types; definitions.go: those that the broker has
//	value.go      the form of values; normalize.go: a client's JSON as a resource
//	path.go       paths of attributes; filter.go, match.go: filters
//	patch.go      PATCH in the dialects of Entra ID and Okta; members.go: of groups
//	handler.go    the endpoints; users.go, groups.go, list.go, discovery.go
//	errors.go     errors in the form of RFC 7644, section 3.12
//
// Package broker/directory stores the resources and decides what they mean.
package scim
