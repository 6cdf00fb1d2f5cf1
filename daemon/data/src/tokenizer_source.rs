#[derive(Debug, Clone, Default)]
pub struct TokenizerSource {
    pub json: String,
    pub chat_template: Option<String>,
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    pub pad_token: Option<String>,
    pub unk_token: Option<String>,
    pub add_bos: bool,
    pub add_eos: bool,
    pub eos_ids: Vec<u32>,
    pub extra_files: Vec<(String, Vec<u8>)>,
}
