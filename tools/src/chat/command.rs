//! What is typed into a conversation: a message, or a command after a slash.

/// A line of the user's.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'l> {
    Nothing,
    Message(&'l str),
    Help,
    Quit,
    /// Begins a new conversation.
    Clear,
    /// The text that the model is told before; none at all where it is empty.
    System(&'l str),
    /// Answers the last message once more.
    Regenerate,
    /// Takes back the last message and its answer.
    Undo,
    Save(&'l str),
    Load(&'l str),
    /// Another composition of the bundle, or `none`.
    Compose(&'l str),
    /// A command that there is not, or that lacks its argument.
    Wrong(String),
}

pub(super) const HELP: &str = "\
/help            this text
/clear           begin a new conversation
/system [TEXT]   tell the model this before, and begin anew; nothing without a text
/regen           answer the last message once more
/undo            take back the last message and its answer
/save FILE       write the conversation, as JSON
/load FILE       go on with one that was saved
/compose NAME    answer with another composition of the bundle; none is the model alone
/quit            end (so does Ctrl-D)
//...            a message that begins with a slash";

impl Line<'_> {
    pub(super) fn parse(line: &str) -> Line<'_> {
        let text = line.trim();
        let Some(command) = text.strip_prefix('/') else {
            return match text.is_empty() {
                true => Line::Nothing,
                false => Line::Message(line),
            };
        };
        if command.starts_with('/') {
            return Line::Message(command);
        }
        let (name, argument) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let argument = argument.trim();
        let needs = |line: Line<'static>, what: &str| match argument.is_empty() {
            true => line,
            false => Line::Wrong(format!("/{name} takes no {what}")),
        };
        let wants = || Line::Wrong(format!("/{name} wants a name; /help shows all commands"));
        match (name, argument.is_empty()) {
            ("help" | "?", _) => Line::Help,
            ("quit" | "exit" | "bye", true) => Line::Quit,
            ("clear", _) => needs(Line::Clear, "argument"),
            ("system", _) => Line::System(argument),
            ("regen", _) => needs(Line::Regenerate, "argument"),
            ("undo", _) => needs(Line::Undo, "argument"),
            ("save" | "load" | "compose", true) => wants(),
            ("save", false) => Line::Save(argument),
            ("load", false) => Line::Load(argument),
            ("compose", false) => Line::Compose(argument),
            _ => Line::Wrong(format!(
                "there is no command /{name}; /help shows all, // begins a message with a slash"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        assert_eq!(Line::parse("  "), Line::Nothing);
        assert_eq!(Line::parse(" hi "), Line::Message(" hi "));
        assert_eq!(Line::parse("//x y"), Line::Message("/x y"));
        assert_eq!(Line::parse("/system Be brief. "), Line::System("Be brief."));
        assert_eq!(Line::parse("/system"), Line::System(""));
        assert_eq!(Line::parse("/save a b"), Line::Save("a b"));
        assert_eq!(Line::parse("/quit"), Line::Quit);
        assert_eq!(Line::parse("/regen"), Line::Regenerate);
        for wrong in ["/save", "/load ", "/clear all", "/nothing", "/", "/compose"] {
            assert!(matches!(Line::parse(wrong), Line::Wrong(_)), "{wrong}");
        }
    }
}
