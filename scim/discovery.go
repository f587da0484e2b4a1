package scim

import (
	"cmp"
	"net/http"
	"strings"
)

// discover serves what clients read about the service provider (RFC 7644, section 4).
func (r *request) discover(endpoint, name string) (answer, error) {
	if !r.isRead() {
		return answer{}, refuse(http.StatusMethodNotAllowed, "the endpoint has GET only")
	}
	if r.query.filter != "" {
		return answer{}, refuse(http.StatusForbidden, "the endpoint has no filters") // RFC 7644, section 4
	}
	var all []Document
	switch endpoint {
	case "ServiceProviderConfig":
		if name != "" {
			return answer{}, errNoResource
		}
		return answer{status: http.StatusOK, body: r.h.provider()}, nil
	case "ResourceTypes":
		for _, t := range []*resourceType{userType, groupType} {
			all = append(all, r.h.showType(t))
		}
	case "Schemas":
		for _, s := range []*schema{userSchema, groupSchema, enterpriseSchema} {
			all = append(all, r.h.showSchema(s))
		}
	}
	if name == "" {
		page := make([]any, len(all))
		for i, d := range all {
			page[i] = d
		}
		return listOf(len(all), 1, page), nil
	}
	for _, d := range all {
		if strings.EqualFold(d["id"].(string), name) {
			return answer{status: http.StatusOK, body: d}, nil
		}
	}
	return answer{}, errNoResource
}

func (h *Handler) provider() Document {
	unsupported := Document{"supported": false}
	return Document{
		"schemas":        []any{urnProvider},
		"patch":          Document{"supported": true},
		"bulk":           Document{"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
		"filter":         Document{"supported": true, "maxResults": maxCount},
		"changePassword": unsupported,
		"sort":           unsupported,
		"etag":           Document{"supported": true},
		"authenticationSchemes": []any{Document{
			"type": "oauthbearertoken", "name": "Bearer token",
			"description": "A token that the broker signed for this provider: broker scim token",
			"specUri":     "https://www.rfc-editor.org/info/rfc6750",
		}},
		"meta": Document{"resourceType": "ServiceProviderConfig", "location": h.cfg.URL + Path + "ServiceProviderConfig"},
	}
}

func (h *Handler) showType(t *resourceType) Document {
	d := Document{
		"schemas": []any{urnResourceType}, "id": t.name, "name": t.name, "description": t.about,
		"endpoint": "/" + t.endpoint, "schema": t.core.id,
		"meta": Document{"resourceType": "ResourceType", "location": h.location("ResourceTypes", t.name)},
	}
	var extensions []any
	for _, s := range t.extensions {
		extensions = append(extensions, Document{"schema": s.id, "required": false})
	}
	if extensions != nil {
		d["schemaExtensions"] = extensions
	}
	return d
}

func (h *Handler) showSchema(s *schema) Document {
	return Document{
		"schemas": []any{urnSchema}, "id": s.id, "name": s.name, "description": s.about, "attributes": s.attributes.show(),
		"meta": Document{"resourceType": "Schema", "location": h.location("Schemas", s.id)},
	}
}

// show returns definitions in the form of RFC 7643, section 7.
func (list attributes) show() (out []any) {
	for _, a := range list {
		d := Document{
			"name": a.name, "type": string(a.kind), "multiValued": a.multi, "description": a.about, "required": a.required,
			"mutability": cmp.Or(a.mutability, "readWrite"), "returned": cmp.Or(a.returned, "default"),
		}
		switch a.kind {
		case kindComplex:
			d["subAttributes"] = a.sub.show()
		case kindString, kindReference, kindBinary:
			d["caseExact"] = a.exact
		}
		if a.kind != kindComplex && a.kind != kindBoolean {
			d["uniqueness"] = cmp.Or(a.uniqueness, "none")
		}
		if len(a.canonical) > 0 {
			d["canonicalValues"] = a.canonical
		}
		if len(a.references) > 0 {
			d["referenceTypes"] = a.references
		}
		out = append(out, d)
	}
	return out
}
