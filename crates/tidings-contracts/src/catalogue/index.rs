//! The first page: all messages with who sends and who receives them, all services, and the event map.

use std::fmt::Write;

use super::{
    Catalogue,
    html::{self, Links, Text, badges, counted, first_line, line},
    picture,
};

pub(super) fn page(catalogue: &Catalogue<'_>) -> String {
    let links = Links { catalogue, up: "" };
    let mut main = format!(
        "<div class=\"title\">\n<h1>{}</h1>\n<p class=\"lead\">{} between {}: who sends what, who receives it, and which \
         fields each of them reads.</p>\n</div>\n",
        Text(&catalogue.title),
        counted(catalogue.messages.len(), "message"),
        counted(catalogue.services.len(), "service"),
    );
    messages(&links, &mut main);
    services(&links, &mut main);
    main.push_str(
        "<section id=\"map\" aria-labelledby=\"map-title\">\n<h2 id=\"map-title\">Event map</h2>\n",
    );
    match catalogue.map.services() {
        [] => main.push_str("<p class=\"none\">There is nothing to draw.</p>\n"),
        _ => main.push_str(&picture::drawn(&catalogue.map, &catalogue.title)),
    }
    main.push_str("</section>\n");
    html::page(catalogue, "", &catalogue.title, &main)
}

fn messages(links: &Links<'_>, main: &mut String) {
    main.push_str(
        "<section id=\"messages\" aria-labelledby=\"messages-title\">\n<div class=\"head\">\n\
         <h2 id=\"messages-title\">Messages</h2>\n\
         <search class=\"filter\" hidden><output for=\"filter\"></output> <label for=\"filter\">Filter</label> \
         <input id=\"filter\" type=\"search\" autocomplete=\"off\" spellcheck=\"false\"></search>\n\
         </div>\n<ul class=\"messages\">\n",
    );
    for (name, message) in &links.catalogue.messages {
        let about = message.description().map(|it| line(first_line(it)));
        let _ = writeln!(
            main,
            "<li>\n<div><h3>{}</h3> {}\n<p>{}</p></div>\n\
             <dl><div><dt>Sent by</dt><dd>{}</dd></div><div><dt>Received by</dt><dd>{}</dd></div></dl>\n</li>",
            links.message(name),
            badges(message),
            about.unwrap_or_else(|| "<span class=\"none\">No description.</span>".to_owned()),
            links.services(&message.senders(), "nobody here"),
            links.services(&message.receivers(), "nobody here"),
        );
    }
    main.push_str("</ul>\n</section>\n");
}

fn services(links: &Links<'_>, main: &mut String) {
    main.push_str(
        "<section id=\"services\" aria-labelledby=\"services-title\">\n<h2 id=\"services-title\">Services</h2>\n\
         <ul class=\"services\">\n",
    );
    for (name, service) in &links.catalogue.services {
        let about = service.description().map(|it| line(first_line(it)));
        let _ = writeln!(
            main,
            "<li>\n<h3>{}</h3> <span class=\"version\">{}</span>\n<p>{}</p>\n\
             <p class=\"counts\">sends {}, receives {}</p>\n</li>",
            links.service(name),
            Text(&service.versions()),
            about.unwrap_or_else(|| "<span class=\"none\">No description.</span>".to_owned()),
            service.sends().count(),
            service.receives().count(),
        );
    }
    main.push_str("</ul>\n</section>\n");
}
